using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Testing.Cases;

/// <summary>One attention call with its tensors: small, awkward, reproducible.</summary>
internal sealed class AttentionCase
{
    public AttentionCase(string name, AttentionShape shape, AttentionOptions options, bool valuesInKeys = false, float valueScale = 1)
    {
        Name = name;
        Problem = new AttentionProblem(shape, options);
        ValuesInKeys = valuesInKeys;
        var random = new Random(name.Sum(letter => letter)); // a seed that a failing test's name tells
        Query = Fill(random, shape.Batch * shape.QueryLength * shape.QueryHeads * shape.HeadDim, 2);
        Key = Fill(random, shape.Batch * shape.KeyLength * shape.KvHeads * shape.HeadDim, 2);
        Value = Fill(random, shape.Batch * shape.KeyLength * shape.KvHeads * shape.ValueDim, valueScale);
        for (int i = 0; valuesInKeys && i < Value.Length; i++)
        {
            Value[i] = Key[(i / shape.ValueDim * shape.HeadDim) + (i % shape.ValueDim)];
        }
    }

    public string Name { get; }

    public AttentionProblem Problem { get; }

    public bool ValuesInKeys { get; }

    public float[] Query { get; }

    public float[] Key { get; }

    public float[] Value { get; }

    public AttentionShape Shape => Problem.Shape;

    public ShardMap ShardsFor(ShardLayout layout, int ranks) => new(Shape, layout, ranks, ElementType.Float32, ValuesInKeys);

    /// <summary>The queries with these indices, in the device's memory.</summary>
    public QueryBlock QueriesOn(IDevice device, int[] indices)
    {
        int dim = Shape.HeadDim;
        Region region = device.Allocate((long)Shape.Batch * Shape.QueryHeads * indices.Length * dim * sizeof(float), ElementType.Float32);
        Span<float> values = region.AsSpan<float>();
        int at = 0;
        for (int batch = 0; batch < Shape.Batch; batch++)
        {
            for (int head = 0; head < Shape.QueryHeads; head++)
            {
                foreach (int query in indices)
                {
                    int from = ((((batch * Shape.QueryLength) + query) * Shape.QueryHeads) + head) * dim;
                    Query.AsSpan(from, dim).CopyTo(values[at..]);
                    at += dim;
                }
            }
        }

        return new QueryBlock(region, indices);
    }

    /// <summary>A rank's shard in the device's memory, limits measured.</summary>
    public KeyValueShard ShardOn(IDevice device, ShardMap shards, int rank)
    {
        ShardPlan plan = shards.PlanOf(rank);
        Region region = device.Allocate(plan.Bytes, ElementType.Float32);
        Span<float> contents = region.AsSpan<float>();
        var limits = new PageLimits[plan.Pages.Count * Shape.KvHeads];
        for (int page = 0; page < plan.Pages.Count; page++)
        {
            KeyPage keys = plan.Pages[page];
            for (int head = 0; head < Shape.KvHeads; head++)
            {
                float largest = 0;
                for (int i = 0; i < keys.Span.Count; i++)
                {
                    int token = (((keys.Batch * Shape.KeyLength) + keys.Span.PositionAt(i)) * Shape.KvHeads) + head;
                    int place = (head * keys.Span.Count) + i;
                    Key.AsSpan(token * Shape.HeadDim, Shape.HeadDim).CopyTo(contents[((int)keys.KeyOffset + (place * Shape.HeadDim))..]);
                    Span<float> value = Value.AsSpan(token * Shape.ValueDim, Shape.ValueDim);
                    foreach (float element in value)
                    {
                        largest = MathF.Max(largest, MathF.Abs(element));
                    }

                    if (!ValuesInKeys)
                    {
                        value.CopyTo(contents[((int)keys.ValueOffset + (place * Shape.ValueDim))..]);
                    }
                }

                limits[(page * Shape.KvHeads) + head] = new PageLimits(float.PositiveInfinity, largest);
            }
        }

        return new KeyValueShard(plan, region, limits);
    }

    public override string ToString() => Name;

    private static float[] Fill(Random random, int count, float scale) =>
        [.. Enumerable.Range(0, count).Select(_ => (float)((random.NextDouble() - 0.5) * 2 * scale))];
}
