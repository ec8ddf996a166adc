using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>Who calls the library wrongly reads which of its properties to change, also when another rank found the fault.</summary>
public sealed class FaultWordsTests
{
    private static readonly GroupOptions _cpu = new() { Device = DeviceKind.Cpu, Threads = 1 };
    private static readonly CacheOptions _cache = new() { KvHeads = 1, HeadDim = 8, ValueDim = 8, MaxLength = 32 };

    [Fact]
    public void Nodes_of_another_number_than_ranks_are_named_by_their_property()
    {
        FaultException fault = Assert.Throws<FaultException>(() => AttentionGroup.JoinInProcess(2, _cpu with { Nodes = [0] }));

        Assert.Equal("GroupOptions.Nodes names the node of 1 ranks, but there are 2: one for each rank.", fault.Message);
    }

    [Fact]
    public void A_transport_and_a_device_that_exclude_each_other_are_named_by_their_kinds()
    {
        FaultException fault = Assert.Throws<FaultException>(() => AttentionGroup.JoinInProcess(1, _cpu with { Transport = TransportKind.Nccl }));

        Assert.StartsWith("TransportKind.Nccl connects GPUs, but DeviceKind.Cpu computes on none. Give DeviceKind.Cuda", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_plan_that_does_not_fit_the_cache_is_named_by_its_property() => Assert.All(
        FaultsOf(2, group =>
        {
            using ShardedKvCache cache = group.CreateCache(_cache);
            group.CreateStep(cache, new DecodeOptions
            {
                QueryHeads = 1,
                Plan = new AttentionPlan(AttentionAlgorithm.Single, ReductionKind.Auto, QueryPlacement.Replicated),
            }).Dispose();
        }),
        fault => Assert.Equal("AttentionPlan.Algorithm single needs a cache that is replicated on the ranks.", fault.Message));

    [Fact]
    public void An_option_of_attention_is_named_by_its_property()
    {
        ShapeMismatchException mismatch = Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(
            new AttentionShape(1, 1, 4, 2, 1, 8, 8), new AttentionOptions { Sinks = [0, 0, 0] }));

        Assert.Equal("AttentionOptions.Sinks has 3 elements but [query_heads] asks for 2.", mismatch.Message);
    }

    [Fact]
    public void A_prefill_that_does_not_fit_the_cache_is_told_the_one_that_does() => Assert.All(
        FaultsOf(2, group =>
        {
            using ShardedKvCache cache = group.CreateCache(_cache with { Replicated = true });
            group.CreatePrefill(cache, new PrefillOptions { Lengths = [4], QueryHeads = 1, Method = PrefillMethod.Gather });
        }),
        fault => Assert.Equal(
            "PrefillOptions.Method gather deals a prompt to the ranks, but each of them holds the whole cache (CacheOptions.Replicated). "
            + "Use PrefillMethod.Chunked.",
            fault.Message));

    [Fact]
    public void A_number_that_is_none_is_told_the_policy_that_lets_it_through() => Assert.All(
        FaultsOf(1, group =>
        {
            using ShardedKvCache cache = group.CreateCache(_cache with { Type = ElementType.BFloat16 });
            float[] tokens = new float[8];
            float[] key = [float.NaN, .. tokens[1..]];
            cache.Append(0, key, tokens);
        }),
        fault => Assert.EndsWith("Repair the input, or let it through with NonFinitePolicy.Propagate.", fault.Message, StringComparison.Ordinal));

    // The fault of every rank.
    private static FaultException[] FaultsOf(int ranks, Action<AttentionGroup> misuse)
    {
        IReadOnlyList<AttentionGroup> groups = AttentionGroup.JoinInProcess(ranks, _cpu);
        var met = new Exception?[ranks];
        Thread[] threads = [.. groups.Select(group => new Thread(() =>
        {
            met[group.Rank] = Record.Exception(() => misuse(group));
            group.Dispose();
        }))];
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => thread.Join());
        return [.. met.Select(Assert.IsType<FaultException>)];
    }
}
