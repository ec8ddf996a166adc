using System;
using System.Collections.Generic;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>A benchmark over numbers that every rank makes for itself; the check remakes one KV head.</summary>
internal sealed class SyntheticBenchInputs(AttentionShape shape, ElementType storageType, KeyValueScales? scales, bool valuesInKeys)
    : IBenchInputs
{
    private const int Seed = 20261121;

    public AttentionShape Shape => shape;

    public ElementType StorageType => storageType;

    public KeyValueScales? Scales => scales;

    public bool ValuesInKeys => valuesInKeys;

    public IEnumerable<KeyValuePair<string, string>> Settings => [new("sizes", shape.ToString())];

    public KeyValueShard LoadShard(IDevice device, ShardPlan plan)
    {
        using var tensors = new SyntheticTensors(shape, Seed);
        tensors.Fill(plan);
        return KeyValueLoader.Load(device, plan, tensors.Key, ValuesOf(tensors), NonFinitePolicy.Error);
    }

    public QueryBlock LoadQueries(IDevice device, int[] indices)
    {
        using var tensors = new SyntheticTensors(shape, Seed);
        return QueryLoader.Load(device, shape, tensors.Query, indices, NonFinitePolicy.Error);
    }

    public Func<AttentionResult, VerificationReport> PrepareCheck(AttentionProblem problem)
    {
        int kvHead = shape.KvHeads / 2;
        using var head = SyntheticTensors.OneHead(shape, Seed, kvHead);
        var alone = new AttentionProblem(
            shape with { KvHeads = 1, QueryHeads = shape.GroupSize }, problem.Options with { Scale = problem.Scale });
        var rows = VerificationRows.Compute(alone, head.Query, head.Key, ValuesOf(head), storageType, Seed, scales?.OfHead(kvHead));
        return result =>
        {
            AttentionResult part = HeadsOf(result, kvHead * shape.GroupSize, shape.GroupSize);
            return rows.Check(part.Output, part.Lse);
        };
    }

    public void Dispose()
    {
    }

    private TensorView ValuesOf(SyntheticTensors tensors) =>
        valuesInKeys ? tensors.Key.TruncateLastAxis("value", shape.ValueDim) : tensors.Value;

    private AttentionResult HeadsOf(AttentionResult whole, int first, int count)
    {
        int tokens = shape.Batch * shape.QueryLength;
        int part = count * shape.ValueDim;
        float[] output = new float[(long)tokens * part];
        for (int token = 0; token < tokens; token++)
        {
            Array.Copy(whole.Output, ((long)token * shape.QueryHeads * shape.ValueDim) + (first * shape.ValueDim), output, (long)token * part, part);
        }

        int lines = count * shape.QueryLength;
        float[] lse = new float[(long)shape.Batch * lines];
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            Array.Copy(whole.Lse, (((long)batch * shape.QueryHeads) + first) * shape.QueryLength, lse, (long)batch * lines, lines);
        }

        return new AttentionResult(output, lse);
    }
}
