using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>A call that is refused changes nothing, and one that fails in the middle leaves the cache as it was, or says that it is lost.</summary>
public sealed class UnchangedTests
{
    private static readonly GroupOptions _options = new() { Device = DeviceKind.Cpu, Threads = 1 };

    // The second row's last token begins a page: what is refused must give it back.
    private static readonly DecodeCase _decode = new("unchanged") { Options = new AttentionOptions { Causal = true }, Before = [600, 512] };

    public static TheoryData<string, string> Refusals =>
        [.. from kind in (string[])["decode", "device", "speculate", "look"] from wrong in (string[])["query", "key", "value", "output", "lse", "layer"]
            where kind != "look" || wrong is not ("key" or "value")
            select (kind, wrong)];

    [Theory, MemberData(nameof(Refusals))]
    public void A_wrong_size_is_refused_by_its_name_before_anything_changes(string kind, string wrong)
    {
        using AttentionGroup group = AttentionGroup.JoinInProcess(1, _options)[0];
        using ShardedKvCache cache = NewCache(group);
        using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());
        using SpeculativeStep tree = group.CreateSpeculativeStep(cache, _decode.DecodeOptions(), TokenTree.FromParents([-1]));
        string before = StateOf(cache);

        ArgumentException error = Assert.ThrowsAny<ArgumentException>(() => Run(group, step, tree, kind, wrong));

        Assert.Equal(wrong, error.ParamName);
        Assert.Equal(before, StateOf(cache));
        Run(group, step, tree, kind, wrong: null);
        Assert.Equal(kind == "look", StateOf(cache) == before);
    }

    [Theory, InlineData("decode"), InlineData("device"), InlineData("speculate"), InlineData("prefill"), InlineData("append")]
    public void A_step_that_fails_in_the_middle_leaves_the_cache_as_it_was(string kind)
    {
        using AttentionGroup whole = AttentionGroup.JoinInProcess(1, _options)[0];
        using var failing = new FailingDevice(whole.Context.Device, kind == "prefill" ? 1 : 0);
        using var group = new AttentionGroup(whole.Context with { Device = failing }, whole, whole.Description);
        using ShardedKvCache cache = NewCache(group);
        string before = StateOf(cache);

        Assert.Throws<TimeoutException>(() => RunKind(group, cache, kind));

        Assert.Equal(before, StateOf(cache));
        Assert.False(cache.IsLost);
    }

    [Fact]
    public void A_fault_of_the_device_loses_the_cache_which_says_so()
    {
        using AttentionGroup whole = AttentionGroup.JoinInProcess(1, _options)[0];
        using var failing = new FailingDevice(whole.Context.Device, 0, new FaultException(FaultCode.DeviceFault, "The device fell off its bus."));
        using var group = new AttentionGroup(whole.Context with { Device = failing }, whole, whole.Description);
        using ShardedKvCache cache = NewCache(group);
        using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());

        Assert.Throws<FaultException>(() => Run(group, step, null, "decode", wrong: null));

        Assert.True(cache.IsLost);
        Assert.All(
            (Action[])[() => cache.Release(0), () => cache.TryRead(0, 0, 0, new float[32], new float[32]), () => cache.Append(0, [], [])],
            call => Assert.Contains("fell off", Assert.Throws<InvalidOperationException>(call).Message, StringComparison.Ordinal));
        FaultException ended = Assert.Throws<FaultException>(() => Run(group, step, null, "decode", wrong: null));
        Assert.Equal(FaultCode.DeviceFault, ended.Code);
        Assert.Contains("has ended", ended.Message, StringComparison.Ordinal);
    }

    private static ShardedKvCache NewCache(AttentionGroup group)
    {
        ShardedKvCache cache = group.CreateCache(_decode.CacheOptions with { MaxLength = 2000 });
        _decode.Fill(cache, 400);
        return cache;
    }

    // Lengths, free pages, and every number that is stored.
    private static string StateOf(ShardedKvCache cache)
    {
        float[] key = new float[_decode.KvHeads * _decode.HeadDim];
        float[] value = new float[_decode.KvHeads * _decode.ValueDim];
        var bits = default(HashCode);
        for (int row = 0; row < _decode.Rows; row++)
        {
            for (int position = 0; position < cache.LengthOf(row); position++)
            {
                cache.TryRead(0, row, position, key, value);
                bits.AddBytes(MemoryMarshal.AsBytes<float>(key));
                bits.AddBytes(MemoryMarshal.AsBytes<float>(value));
            }
        }

        return $"{cache.LengthOf(0)} {cache.LengthOf(1)}, {cache.Pages.FreeOn(0)} free, values to {cache.Bound.Limits[0].LargestValue:R}, {bits.ToHashCode():x}";
    }

    private static void RunKind(AttentionGroup group, ShardedKvCache cache, string kind)
    {
        if (kind == "append")
        {
            cache.AppendShard(0, 1, 700, new FailingSource(400));
        }
        else if (kind == "prefill")
        {
            using PrefillStep prefill = group.CreatePrefill(
                cache, new PrefillOptions { Lengths = [20, 30], QueryHeads = _decode.QueryHeads, Method = PrefillMethod.Chunked, Chunk = 8 });
            int tokens = prefill.Tokens.Count;
            float[] query = new float[tokens * _decode.QueryHeads * _decode.HeadDim];
            float[] key = new float[tokens * _decode.KvHeads * _decode.HeadDim];
            group.Prefill(prefill, 0, query, key, key, new float[query.Length], new float[tokens * _decode.QueryHeads]);
        }
        else
        {
            using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());
            using SpeculativeStep tree = group.CreateSpeculativeStep(cache, _decode.DecodeOptions(), TokenTree.FromParents([-1]));
            Run(group, step, tree, kind, wrong: null);
        }
    }

    // One of the sizes is wrong, or none.
    private static void Run(AttentionGroup group, DecodeStep step, SpeculativeStep? tree, string kind, string? wrong)
    {
        (float[] key, float[] value) = _decode.LastTokens();
        float[] query = Sized(_decode.Query, wrong == "query");
        float[] output = Sized(new float[_decode.Rows * _decode.QueryHeads * _decode.ValueDim], wrong == "output");
        float[] lse = Sized(new float[_decode.Rows * _decode.QueryHeads], wrong == "lse");
        (key, value) = (Sized(key, wrong == "key"), Sized(value, wrong == "value"));
        int layer = wrong == "layer" ? 1 : 0;
        switch (kind)
        {
            case "decode":
                group.Decode(step, layer, query, key, value, output, lse);
                break;
            case "look":
                group.Attend(step, layer, query, output, lse);
                break;
            case "speculate":
                group.Speculate(tree!, layer, query, key, value, output, lse);
                break;
            default:
                using (var pinned = new PinnedTensors())
                {
                    group.Decode(step, layer, pinned.Of(query), pinned.Of(key), pinned.Of(value), pinned.Of(output), pinned.Of(lse));
                }

                break;
        }
    }

    private static float[] Sized(float[] numbers, bool isWrong) => isWrong ? [.. numbers, 0f] : numbers;

    private sealed class PinnedTensors : IDisposable
    {
        private readonly List<GCHandle> _handles = [];

        public DeviceTensor Of(float[] numbers)
        {
            _handles.Add(GCHandle.Alloc(numbers, GCHandleType.Pinned));
            return new DeviceTensor(_handles[^1].AddrOfPinnedObject(), numbers.Length);
        }

        public void Dispose() => _handles.ForEach(handle => handle.Free());
    }

    private sealed class FailingSource(int tokens) : ITokenSource
    {
        private int _left = tokens;

        public void Read(int row, int position, Span<float> key, Span<float> value)
        {
            if (_left-- == 0)
            {
                throw new TimeoutException("the source is out of time");
            }

            key.Fill(1e6f); // larger than all before
            value.Fill(1e6f);
        }
    }
}
