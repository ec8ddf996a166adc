using System;
using System.Collections.Generic;
using System.Linq;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>Ranks that give a call different options are told so, with the field and the ranks, before anything is made; the group then works on.</summary>
public sealed class AgreedOptionsTests
{
    private static readonly CacheOptions _cache = new() { Layers = 2, Rows = 2, KvHeads = 2, HeadDim = 16, ValueDim = 16, MaxLength = 64 };
    private static readonly DecodeOptions _decode = new() { QueryHeads = 4, Attention = new AttentionOptions { Causal = true } };
    private static readonly PrefillOptions _prefill = new() { QueryHeads = 4, Lengths = [3, 4], Method = PrefillMethod.Chunked };
    private static readonly AttendOptions _attend = new() { QueryHeads = 2, KvHeads = 2, HeadDim = 4, ValueDim = 4 };

    /// <summary>What each case changes on one rank, and what the message must name.</summary>
    private static readonly Dictionary<string, Action<AttentionGroup, ShardedKvCache, bool>> _calls = new()
    {
        ["CacheOptions.Layers"] = (group, _, odd) => group.CreateCache(_cache with { Layers = odd ? 1 : 2 }),
        ["CacheOptions.Rows"] = (group, _, odd) => group.CreateCache(_cache with { Rows = odd ? 1 : 2 }),
        ["CacheOptions.KvHeads"] = (group, _, odd) => group.CreateCache(_cache with { KvHeads = odd ? 4 : 2 }),
        ["CacheOptions.HeadDim"] = (group, _, odd) => group.CreateCache(_cache with { HeadDim = odd ? 32 : 16 }),
        ["CacheOptions.ValueDim"] = (group, _, odd) => group.CreateCache(_cache with { ValueDim = odd ? 8 : 16 }),
        ["CacheOptions.MaxLength"] = (group, _, odd) => group.CreateCache(_cache with { MaxLength = odd ? 65 : 64 }),
        ["CacheOptions.Type"] = (group, _, odd) => group.CreateCache(_cache with { Type = odd ? ElementType.BFloat16 : ElementType.Float16 }),
        ["CacheOptions.Scales"] = (group, _, odd) => group.CreateCache(
            _cache with { Type = ElementType.Float8E4M3, Scales = new KeyValueScales([1, 1], [1, odd ? 2 : 1]) }),
        ["CacheOptions.Rotary"] = (group, _, odd) => group.CreateCache(_cache with { Rotary = new RotaryOptions(16, odd ? 10_000 : 500_000) }),
        ["CacheOptions.NonFinite"] = (group, _, odd) => group.CreateCache(
            _cache with { NonFinite = odd ? NonFinitePolicy.Propagate : NonFinitePolicy.Error }),
        ["DecodeOptions.QueryLength"] = (group, cache, odd) => group.CreateStep(cache, _decode with { QueryLength = odd ? 2 : 1 }),
        ["DecodeOptions.QueryHeads"] = (group, cache, odd) => group.CreateStep(cache, _decode with { QueryHeads = odd ? 8 : 4 }),
        ["DecodeOptions.Rows"] = (group, cache, odd) => group.CreateStep(cache, _decode with { Rows = odd ? [1] : [0] }),
        ["DecodeOptions.Plan"] = (group, cache, odd) => group.CreateStep(
            cache, _decode with { Plan = new AttentionPlan(AttentionAlgorithm.Tree, odd ? ReductionKind.Butterfly : ReductionKind.AllGather) }),
        ["AttentionOptions.Softcap"] = (group, cache, odd) => group.CreateStep(cache, With(new AttentionOptions { Softcap = odd ? 30 : 50 })),
        ["AttentionOptions.Scale"] = (group, cache, odd) => group.CreateStep(cache, With(new AttentionOptions { Scale = odd ? 0.25 : 0.125 })),
        ["AttentionOptions.AlibiSlopes"] = (group, cache, odd) => group.CreateStep(
            cache, With(new AttentionOptions { AlibiSlopes = [0, 0, 0, odd ? 1 : 0.5f] })),
        ["AttentionOptions.Sinks"] = (group, cache, odd) => group.CreateStep(cache, With(new AttentionOptions { Sinks = [0, odd ? 1 : 2, 0, 0] })),
        ["TokenTree.Parents"] = (group, cache, odd) => group.CreateSpeculativeStep(cache, _decode, TokenTree.FromParents([-1, 0, odd ? 0 : 1])),
        ["PrefillOptions.Lengths"] = (group, cache, odd) => group.CreatePrefill(cache, _prefill with { Lengths = [3, odd ? 5 : 4] }),
        ["PrefillOptions.Method"] = (group, cache, odd) => group.CreatePrefill(
            cache, _prefill with { Method = odd ? PrefillMethod.Gather : PrefillMethod.Ring }),
        ["PrefillOptions.Chunk"] = (group, cache, odd) => group.CreatePrefill(cache, _prefill with { Chunk = odd ? 2 : 3 }),
        ["AttendOptions.Scales"] = (group, _, odd) => group.Attend(
            new float[8], new float[8], new float[8],
            _attend with { Type = ElementType.Int8, Scales = new KeyValueScales([1, odd ? 2 : 1], [1, 1]) }, TestContext.Current.CancellationToken),
        ["query"] = (group, _, odd) => group.Attend(
            [odd ? 1 : 2, .. new float[7]], new float[8], new float[8], _attend, TestContext.Current.CancellationToken),
        ["call"] = (group, cache, odd) =>
        {
            if (odd)
            {
                group.CreatePrefill(cache, _prefill);
            }
            else
            {
                group.CreateStep(cache, _decode);
            }
        },
    };

    /// <summary>The cases' names.</summary>
    public static TheoryData<string> Fields => [.. _calls.Keys];

    [Theory, MemberData(nameof(Fields))]
    public void A_field_that_differs_is_named_with_its_ranks(string field) => AttentionGroup.RunInProcess(3, group =>
    {
        using ShardedKvCache cache = group.CreateCache(_cache);

        FaultException fault = Assert.Throws<FaultException>(() => _calls[field](group, cache, group.Rank == 2));

        Assert.Equal((FaultCode.RanksDisagree, true), (fault.Code, fault.IsAgreed));
        string line = Assert.Single(fault.Message.Split('\n'), line => line.StartsWith($"  {field}: ", StringComparison.Ordinal));
        string[] values = [.. line[(line.IndexOf(": ", StringComparison.Ordinal) + 2)..].Split("rank ", StringSplitOptions.RemoveEmptyEntries)
            .Select(value => value[3..].TrimEnd(',', ' '))];
        Assert.Equal((values[0], 3), (values[1], values.Length));
        Assert.NotEqual(values[0], values[2]);
        using DecodeStep step = group.CreateStep(cache, _decode); // the group works on
    }, new GroupOptions { Device = DeviceKind.Cpu, Threads = 1 });

    [Fact]
    public void Equal_options_of_different_objects_are_agreed_and_memory_is_each_ranks_own() => AttentionGroup.RunInProcess(3, group =>
    {
        using ShardedKvCache cache = group.CreateCache(_cache with { MemoryBytes = (1 + group.Rank) << 20, Rotary = new RotaryOptions(16) });
        using DecodeStep step = group.CreateStep(cache, With(new AttentionOptions { Causal = true, Sinks = [1, 2, 3, 4] }));
    }, new GroupOptions { Device = DeviceKind.Cpu, Threads = 1 });

    private static DecodeOptions With(AttentionOptions attention) => _decode with { Attention = attention };
}
