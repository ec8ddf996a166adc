using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Face;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>Groups, caches and steps end in any order, from any thread, any number of times: afterwards their calls say so, and nothing crashes.</summary>
public sealed class LifetimeTests
{
    private static readonly GroupOptions _options = new() { Device = DeviceKind.Cpu, Threads = 1 };
    private static readonly DecodeCase _decode = new("lifetimes") { Options = new AttentionOptions { Causal = true } };

    public static TheoryData<string> Entries => [.. Living().Select(call => call.Name)];

    [Theory, MemberData(nameof(Entries))]
    public void Every_entry_of_what_was_disposed_of_says_so(string name)
    {
        FaceCall call = Living().Single(one => one.Name == name);
        using var world = new FaceWorld();
        var target = (IDisposable)world.TargetOf(call.Method.DeclaringType!)!;
        object?[] arguments = world.ArgumentsOf(call);

        target.Dispose();
        target.Dispose();

        Assert.Throws<ObjectDisposedException>(() => call.Invoke(target, arguments));
    }

    [Fact]
    public void The_entries_work_while_nothing_is_disposed_of()
    {
        // The control of the test above: with the same arguments, nothing says that it was disposed of.
        foreach (FaceCall call in Living())
        {
            using var world = new FaceWorld();

            Exception? error = Record.Exception(() => call.Invoke(world.TargetOf(call.Method.DeclaringType!), world.ArgumentsOf(call)));

            Assert.True(error is null or InvalidOperationException or ArgumentException, $"{call.Name}: {error}");
            Assert.IsNotType<ObjectDisposedException>(error);
        }
    }

    [Theory, InlineData(0, 1, 2), InlineData(0, 2, 1), InlineData(1, 0, 2), InlineData(1, 2, 0), InlineData(2, 0, 1), InlineData(2, 1, 0)]
    public void Step_cache_and_group_end_in_any_order(int first, int second, int third)
    {
        IReadOnlyList<AttentionGroup> groups = AttentionGroup.JoinInProcess(2, _options);
        Parallel.ForEach(groups, new ParallelOptions { MaxDegreeOfParallelism = -1 }, group =>
        {
            ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
            DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());
            PrefillStep prefill = group.CreatePrefill(cache, new PrefillOptions { Lengths = [5, 5], QueryHeads = _decode.QueryHeads });
            AttentionGroup part = group.Split(0, 0);
            IDisposable[] all = [step, cache, group];

            foreach (int next in (int[])[first, second, third])
            {
                all[next].Dispose();
                Assert.Throws<ObjectDisposedException>(() => group.Decode(step, 0, [], [], [], [], [], TestContext.Current.CancellationToken));
            }

            prefill.Dispose();
            part.Dispose();
            Assert.Equal(0, group.Context.Device.Memory.Bytes);
        });
    }

    [Fact]
    public async Task A_call_that_is_inside_is_finished_before_anything_is_freed()
    {
        CancellationToken cancellation = TestContext.Current.CancellationToken;
        AttentionGroup group = AttentionGroup.JoinInProcess(1, _options)[0];
        ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
        using var source = new PausingSource();
        var append = Task.Run(() => cache.AppendShard(0, 0, 3, source), cancellation);
        source.Reached.Wait(cancellation);

        cache.Dispose();
        var leave = Task.Run(group.Dispose, cancellation);
        long during = group.Context.Device.Memory.Bytes;
        source.GoOn.Set();
        await append.WaitAsync(ProcessTree.Patience, cancellation);
        await leave.WaitAsync(ProcessTree.Patience, cancellation);

        Assert.True(during > 0, "The cache was freed under the call.");
        Assert.Equal(0, group.Context.Device.Memory.Bytes);
        Assert.Throws<ObjectDisposedException>(() => cache.LengthOf(0));
    }

    [Fact]
    public void Threads_that_decode_while_others_dispose_end_by_an_exception_that_says_why()
    {
        const int Seed = 20;
        var random = new Random(Seed);
        for (int round = 0; round < 20; round++)
        {
            IReadOnlyList<AttentionGroup> groups = AttentionGroup.JoinInProcess(2, _options);
            var made = new IDisposable[4];
            using var ready = new Barrier(3);
            var ends = new Exception?[2];
            Thread[] threads = [.. groups.Select((group, rank) => new Thread(() =>
            {
                ShardedKvCache cache = group.CreateCache(_decode.CacheOptions with { MaxLength = 5000 });
                DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());
                (made[2 * rank], made[(2 * rank) + 1]) = (step, cache);
                ready.SignalAndWait(TestContext.Current.CancellationToken);
                ends[rank] = Record.Exception(() => DecodeOn(group, step));
                group.Dispose();
            }))];
            Array.ForEach(threads, thread => thread.Start());
            ready.SignalAndWait(TestContext.Current.CancellationToken);
            int[] order = [.. Enumerable.Range(0, 5).OrderBy(_ => random.Next())];

            foreach (int next in order)
            {
                (next < 4 ? made[next] : groups[round % 2]).Dispose();
            }

            Assert.All(threads, thread => Assert.True(thread.Join(ProcessTree.Patience), "a rank does not end"));
            Assert.All(ends, end => Assert.True(end is ObjectDisposedException or FaultException { Code: FaultCode.PeerLost }, $"seed {Seed}, round {round}: {end}"));
        }
    }

    [Fact]
    public void A_second_thread_on_a_rank_is_refused_and_the_first_goes_on()
    {
        using AttentionGroup group = AttentionGroup.JoinInProcess(1, _options)[0];
        using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
        using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());
        using AttentionGroup part = group.Split(0, 0);
        using var source = new PausingSource();
        var first = new Thread(() => cache.AppendShard(0, 0, 3, source));
        first.Start();
        source.Reached.Wait(TestContext.Current.CancellationToken);

        Action[] calls =
        [
            () => group.Decode(step, 0, [], [], [], [], [], TestContext.Current.CancellationToken),
            () => group.CreateCache(_decode.CacheOptions),
            () => group.Together(() => { }),
            () => part.CreateCache(_decode.CacheOptions),
            () => cache.Release(1),
            () => cache.TryRead(0, 0, 0, [], []),
        ];
        string[] messages = [.. calls.Select(call => Assert.Throws<InvalidOperationException>(call).Message)];
        source.GoOn.Set();
        first.Join();

        Assert.All(messages, message => Assert.Contains(nameof(ShardedKvCache.AppendShard), message, StringComparison.Ordinal));
        Assert.Equal(3, cache.LengthOf(0));
    }

    [Fact]
    public void A_source_of_tokens_cannot_change_the_cache_that_reads_it()
    {
        using AttentionGroup group = AttentionGroup.JoinInProcess(1, _options)[0];
        using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);

        var source = new CallingSource(() => cache.Truncate(0, 0));

        Assert.Throws<InvalidOperationException>(() => cache.AppendShard(0, 0, 3, source));
        Assert.Equal(0, cache.LengthOf(0));
        cache.AppendShard(0, 0, 3, new CallingSource(() => Assert.Equal(0, cache.LengthOf(0))));
        Assert.Equal(3, cache.LengthOf(0));
    }

    private static void DecodeOn(AttentionGroup group, DecodeStep step)
    {
        (float[] key, float[] value) = _decode.LastTokens();
        float[] output = new float[_decode.Rows * _decode.QueryHeads * _decode.ValueDim];
        float[] lse = new float[_decode.Rows * _decode.QueryHeads];
        while (true)
        {
            group.Decode(step, 0, _decode.Query, key, value, output, lse);
        }
    }

    private static IEnumerable<FaceCall> Living() =>
        ((Type[])[typeof(AttentionGroup), typeof(ShardedKvCache), typeof(DecodeStep), typeof(SpeculativeStep), typeof(PrefillStep)])
        .SelectMany(FaceCall.MethodsOf)
        .Where(call => !call.Method.IsStatic && call.Method.Name is not (nameof(IDisposable.Dispose) or nameof(PrefillStep.TokensOf)));

    /// <summary>Tokens of zeros; the first is given when the test says so.</summary>
    private sealed class PausingSource : ITokenSource, IDisposable
    {
        public ManualResetEventSlim Reached { get; } = new();

        public ManualResetEventSlim GoOn { get; } = new();

        public void Read(int row, int position, Span<float> key, Span<float> value)
        {
            Reached.Set();
            GoOn.Wait();
            key.Clear();
            value.Clear();
        }

        public void Dispose()
        {
            Reached.Dispose();
            GoOn.Dispose();
        }
    }

    private sealed class CallingSource(Action call) : ITokenSource
    {
        public void Read(int row, int position, Span<float> key, Span<float> value) => call();
    }
}
