using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>Attention without a cache is the float64 reference over the keys of all ranks, however these are dealt.</summary>
public sealed class OneShotAttentionTests
{
    private const int QueryHeads = 6;
    private const int KvHeads = 2;
    private const int HeadDim = 17;
    private const int ValueDim = 9;

    private static readonly GroupOptions _options = new() { Device = DeviceKind.Cpu, Threads = 1 };

    // Keys of each rank: ragged and over a page, empty ones, none at all, fewer than ranks.
    public static TheoryData<int[]> Lengths => [.. new int[][] { [513, 20, 600], [0, 31, 0], [0, 0, 0], [1, 0, 1, 0, 0], [44] }];

    [Theory, MemberData(nameof(Lengths))]
    public void Shards_in_the_order_of_the_ranks_may_be_of_any_lengths(int[] lengths) =>
        Check(lengths, Options, keys => [.. lengths.Select((length, rank) => Enumerable.Range(lengths.Take(rank).Sum(), length).ToArray())]);

    [Theory, MemberData(nameof(Lengths))]
    public void A_causal_batch_aligns_its_queries_with_the_last_keys(int[] lengths) =>
        Check(
            lengths, Options with { Batch = 2, QueryLength = 5, Attention = new AttentionOptions { Causal = true } },
            keys => [.. lengths.Select((length, rank) => Enumerable.Range(lengths.Take(rank).Sum(), length).ToArray())]);

    [Theory, InlineData("zigzag"), InlineData("striped"), InlineData("cyclic:16"), InlineData("contiguous"), InlineData("lanes")]
    public void A_layout_deals_positions_that_every_rank_gives_in_its_order(string name)
    {
        var layout = ShardLayout.Parse(name);
        AttentionPlan plan = name == "lanes" ? new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes) : new AttentionPlan(AttentionAlgorithm.Ring);

        Check(
            [0, 0, 1040], Options with { Layout = layout, Plan = plan, Batch = 2, QueryLength = 3, Attention = new AttentionOptions { Causal = true, WindowLeft = 700 } },
            keys => [.. Enumerable.Range(0, 3).Select(rank => layout.PositionsOf(rank, 3, keys))]);
    }

    [Theory, InlineData(1), InlineData(3)]
    public void Reproducible_packed_sequences_are_given_by_lanes_of_their_own(int ranks)
    {
        int[] bounds = [0, 700, 720, 720, 1300];
        var layout = ShardLayout.LanesOf(bounds);

        Check(
            [.. new int[ranks - 1], 1300],
            Options with
            {
                Layout = layout,
                Plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes),
                QueryLength = 4,
                Attention = new AttentionOptions { PackedQueries = [0, 1, 3, 3, 4], PackedKeys = bounds, Causal = true },
            },
            keys => [.. Enumerable.Range(0, ranks).Select(rank => layout.PositionsOf(rank, ranks, keys))]);
    }

    [Fact]
    public void Reproducible_rows_that_begin_elsewhere_are_refused_where_ranks_hold_pages_of_others() => RunAll(2, group =>
    {
        float[] query = new float[QueryHeads * HeadDim];
        float[] key = new float[2 * KvHeads * HeadDim];
        float[] value = new float[2 * KvHeads * ValueDim];
        AttendOptions lanes = Options with { Layout = ShardLayout.Lanes, Plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes) };
        CancellationToken cancellation = TestContext.Current.CancellationToken;

        FaultException packed = Assert.Throws<FaultException>(() => group.Attend(
            query, group.IsRoot ? key : [], group.IsRoot ? value : [],
            lanes with { Attention = new AttentionOptions { PackedQueries = [0, 0, 1], PackedKeys = [0, 1, 2] } }, cancellation));
        FaultException padded = Assert.Throws<FaultException>(() => group.Attend(
            query, group.IsRoot ? key : [], group.IsRoot ? value : [], lanes with { Attention = new AttentionOptions { KeyStarts = [1] } }, cancellation));

        Assert.Contains("Give the keys of ShardLayout.LanesOf(AttentionOptions.PackedKeys)", packed.Message, StringComparison.Ordinal);
        Assert.Contains("Leave the padding out", padded.Message, StringComparison.Ordinal);
    });

    [Fact]
    public void Values_may_lie_in_the_keys_and_storage_may_be_narrow() =>
        Check(
            [100, 7], Options with { ValuesInKeys = true, Type = ElementType.BFloat16 },
            keys => [Enumerable.Range(0, 100).ToArray(), Enumerable.Range(100, 7).ToArray()]);

    [Fact]
    public void What_does_not_fit_or_differs_is_the_same_fault_on_every_rank_and_leaves_the_group_working()
    {
        float[] query = new float[QueryHeads * HeadDim];
        float[] key = new float[4 * KvHeads * HeadDim];
        float[] value = new float[4 * KvHeads * ValueDim];

        RunAll(2, group =>
        {
            CancellationToken cancellation = TestContext.Current.CancellationToken;
            FaultException odd = Assert.Throws<FaultException>(() => group.Attend(query, group.Rank == 1 ? key.AsSpan(1) : key, value, Options, cancellation));
            FaultException unlike = Assert.Throws<FaultException>(
                () => group.Attend(query, key, value, Options with { Attention = new AttentionOptions { Causal = group.IsRoot } }, cancellation));
            FaultException dealt = Assert.Throws<FaultException>(() => group.Attend(
                query, group.IsRoot ? key : [], group.IsRoot ? value : [], Options with { Layout = ShardLayout.Contiguous }, cancellation));
            Assert.Throws<ArgumentException>(
                () => group.Attend(query, key, value, Options with { Plan = new AttentionPlan(AttentionAlgorithm.Single) }, cancellation));

            (float[] output, float[] lse) = group.Attend(query, key, value, Options, cancellation);

            Assert.Equal((FaultCode.BadInput, FaultCode.RanksDisagree, FaultCode.BadInput), (odd.Code, unlike.Code, dealt.Code));
            Assert.True(odd.IsAgreed && unlike.IsAgreed && dealt.IsAgreed);
            Assert.All(output, number => Assert.Equal(0, number));
            Assert.All(lse, number => Assert.Equal(Math.Log(8), number, 1e-6));
        });
    }

    private static AttendOptions Options => new() { QueryHeads = QueryHeads, KvHeads = KvHeads, HeadDim = HeadDim, ValueDim = ValueDim };

    private static void Check(int[] lengths, AttendOptions options, Func<int, int[][]> positionsOf)
    {
        int keys = lengths.Sum();
        int[][] positions = positionsOf(keys);
        var shape = new AttentionShape(options.Batch, options.QueryLength, keys, QueryHeads, KvHeads, HeadDim, ValueDim);
        using var query = HostTensor.Normal("query", ElementType.Float32, [shape.Batch, shape.QueryLength, QueryHeads, HeadDim], 1);
        using var key = HostTensor.Normal("key", ElementType.Float32, [shape.Batch, keys, KvHeads, HeadDim], 2);
        using var value = HostTensor.Normal("value", ElementType.Float32, [shape.Batch, keys, KvHeads, ValueDim], 3);
        TensorView values = options.ValuesInKeys ? key.View.TruncateLastAxis("value", ValueDim) : value.View;

        RunAll(lengths.Length, group =>
        {
            (float[] output, float[] lse) = group.Attend(
                Floats(query), Part(key, positions[group.Rank]), options.ValuesInKeys ? [] : Part(value, positions[group.Rank]), options,
                TestContext.Current.CancellationToken);

            VerificationReport report = Agreement.Check(
                new ReferenceCall(shape, options.Attention, query.View, key.View, values, options.Type), output, lse, seed: 7);
            Assert.True(report.Wrong == 0, report.WorstRow);
            Assert.Equal(shape.Batch * shape.QueryLength * QueryHeads, report.Rows);
        });
    }

    private static float[] Floats(HostTensor tensor) => [.. tensor.Values.Select(number => (float)number)];

    // [batch, positions, heads, dim] of a tensor.
    private static float[] Part(HostTensor tensor, int[] positions)
    {
        long[] shape = tensor.View.Shape;
        int width = (int)(shape[2] * shape[3]);
        float[] whole = Floats(tensor);
        return [.. Enumerable.Range(0, (int)shape[0]).SelectMany(
            batch => positions.SelectMany(position => whole.AsSpan((int)((batch * shape[1]) + position) * width, width).ToArray()))];
    }

    private static void RunAll(int ranks, Action<AttentionGroup> body)
    {
        IReadOnlyList<AttentionGroup> groups = AttentionGroup.JoinInProcess(ranks, _options);
        var failures = new Exception?[ranks];
        Thread[] threads = [.. groups.Select((group, rank) => new Thread(() => failures[rank] = Record.Exception(() =>
        {
            using (group)
            {
                body(group);
            }
        })))];
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => Assert.True(thread.Join(TimeSpan.FromSeconds(60)), "a rank does not end"));
        Assert.All(failures, failure => Assert.True(failure is null, $"{failure}"));
    }
}
