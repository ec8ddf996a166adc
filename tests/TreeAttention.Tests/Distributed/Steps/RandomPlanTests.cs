using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Steps;

/// <summary>Random shapes, options, layouts, ranks and plans against dense float64 attention; a failure names its seed.</summary>
public sealed class RandomPlanTests
{
    [Theory, InlineData(1), InlineData(2), InlineData(3), InlineData(4)]
    public void Any_plan_over_any_shape_agrees_with_dense_attention(int block)
    {
        for (int seed = block * 1000; seed < (block * 1000) + 40; seed++)
        {
            var random = new Random(seed);
            AttentionCase attention = RandomCase(random, seed);
            int ranks = random.Next(1, 9);
            ShardLayout[] layouts = [.. AttentionCases.LayoutsFor(attention.Shape, ranks)];
            ShardLayout layout = layouts[random.Next(layouts.Length)];
            AttentionPlan plan = RandomPlan(random, attention.Shape, layout);
            int[] nodes = [.. Enumerable.Range(0, ranks).Select(_ => plan.Reduction == ReductionKind.TwoLevel ? random.Next(3) : 0)];

            (float[] State, int[] Indices)[] results = RankThreads.Attend(attention, layout, plan, ranks, nodes);

            var oracle = new AttentionOracle(attention);
            foreach ((float[] state, int[] indices) in results)
            {
                double error = oracle.ErrorOf(state, indices);
                Assert.True(error <= 1e-5, $"seed {seed}: {attention.Shape}, {layout}, {plan}, {ranks} ranks: error {error}");
            }
        }
    }

    private static AttentionCase RandomCase(Random random, int seed)
    {
        int batch = random.Next(1, 4);
        int kvHeads = random.Next(1, 4);
        int keys = random.Next(0, 5) == 0 ? random.Next(500, 1200) : random.Next(0, 40);
        int headDim = random.Next(1, 12);
        var shape = new AttentionShape(
            batch, random.Next(1, 7), keys, kvHeads * random.Next(1, 4), kvHeads, headDim, random.Next(1, 12));
        var options = new AttentionOptions
        {
            Causal = random.Next(2) == 0,
            WindowLeft = random.Next(3) == 0 ? random.Next(0, 20) : -1,
            WindowRight = random.Next(3) == 0 ? random.Next(0, 20) : -1,
            Softcap = random.Next(3) == 0 ? 3 : 0,
            AlibiSlopes = random.Next(3) == 0 ? [.. Enumerable.Range(0, shape.QueryHeads).Select(_ => random.NextSingle())] : null,
            KeyLengths = random.Next(3) == 0 ? [.. Enumerable.Range(0, batch).Select(_ => random.Next(0, keys + 1))] : null,
            QueryLengths = random.Next(3) == 0 ? [.. Enumerable.Range(0, batch).Select(_ => random.Next(0, shape.QueryLength + 1))] : null,
        };
        return new AttentionCase($"random {seed}", shape, options);
    }

    private static AttentionPlan RandomPlan(Random random, AttentionShape shape, ShardLayout layout)
    {
        var algorithm = (AttentionAlgorithm)random.Next(1, 6);
        var reduction = (ReductionKind)random.Next(0, 9);
        bool canShard = algorithm != AttentionAlgorithm.Tree
            && (shape.QueryLength == shape.KeyLength || !layout.Name.StartsWith("lengths", StringComparison.Ordinal));
        return new AttentionPlan(
            algorithm, reduction, canShard && random.Next(2) == 0 ? QueryPlacement.Sharded : QueryPlacement.Replicated);
    }
}
