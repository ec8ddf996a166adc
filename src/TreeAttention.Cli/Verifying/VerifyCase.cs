using System;
using System.Globalization;
using System.Linq;
using System.Numerics.Tensors;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>One call of <c>treeattn verify</c>, the same on every rank.</summary>
/// <param name="Seed">Of its numbers.</param>
/// <param name="Problem">Sizes and options.</param>
/// <param name="StorageType">Of keys and values.</param>
/// <param name="ValuesInKeys">Values are the first elements of the keys.</param>
/// <param name="Plan">How it is computed.</param>
/// <param name="Layout">Which keys each rank has.</param>
internal sealed record VerifyCase(
    int Seed, AttentionProblem Problem, ElementType StorageType, bool ValuesInKeys, VerifyPlan Plan, ShardLayout Layout)
{
    /// <summary>Scales of f8e4m3 storage, another for each KV head; null where the type has none.</summary>
    public KeyValueScales? Scales { get; } = ScalesFor(Problem.Shape.KvHeads, StorageType);

    /// <summary>What a failure is reported with.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"seed {Seed}, {Plan.Name} over {Layout}, {StorageType.ShortName()}, {Problem.Shape}{(ValuesInKeys ? ", values in keys" : "")}, {Options}");

    private string Options => string.Join(
        ' ', Settlement.Of(Problem.Options).Where(setting => setting.Value is not ("none" or "default" or "False" or "-1,-1" or "0"))
            .Select(setting => $"{setting.Key} {setting.Value}"));

    /// <summary>The call's numbers, whole on every rank. All are such that storing them loses nothing: what errs is the computation alone.</summary>
    public SyntheticTensors CreateTensors()
    {
        var tensors = new SyntheticTensors(Problem.Shape, Seed);
        for (int position = 0; position < Problem.Shape.KeyLength; position++)
        {
            tensors.FillKey(position);
        }

        Round(tensors.Query, null);
        Round(tensors.Key, Scales?.Key);
        Round(tensors.Value, Scales?.Value);
        return tensors;
    }

    /// <summary>The values of the call.</summary>
    public TensorView ValuesOf(SyntheticTensors tensors) =>
        ValuesInKeys ? tensors.Key.TruncateLastAxis("value", Problem.Shape.ValueDim) : tensors.Value;

    // Three halves of a power of two: products with stored elements are exact in single precision, and the smallest scale has
    // room for ±2.6, where the numbers lie within ±√3.
    private static KeyValueScales? ScalesFor(int kvHeads, ElementType type)
    {
        float[] key = [.. Enumerable.Range(0, kvHeads).Select(head => 1.5f * MathF.ScaleB(1, -6 - (head % 3)))];
        float[] value = [.. Enumerable.Range(0, kvHeads).Select(head => 1.5f * MathF.ScaleB(1, -4 - (head % 2)))];
        return type == ElementType.Float8E4M3 ? new KeyValueScales(key, value) : null;
    }

    // Queries are computed with as f16 where storage has eight bits.
    private void Round(TensorView tensor, float[]? scales)
    {
        if (StorageType == ElementType.Float32)
        {
            return;
        }

        ElementType type = scales is null && StorageType == ElementType.Float8E4M3 ? ElementType.Float16 : StorageType;
        Span<float> numbers = new Region(tensor.Address, tensor.Count * sizeof(float), tensor.Type, MemoryPlace.Host).AsSpan<float>();
        byte[] stored = new byte[numbers.Length * type.SizeInBytes()];
        if (scales is null)
        {
            ElementConversion.FromFloat(numbers, type, stored);
            ElementConversion.ToFloat(stored, type, numbers);
            return;
        }

        int dim = (int)tensor.Shape[3];
        for (int first = 0; first < numbers.Length; first += dim)
        {
            float scale = scales[first / dim % scales.Length];
            Span<float> row = numbers.Slice(first, dim);
            ElementConversion.ToFloat8E4M3(row, scale, stored.AsSpan(first, dim));
            ElementConversion.ToFloat(stored.AsSpan(first, dim), type, row);
            TensorPrimitives.Multiply(row, scale, row);
        }
    }
}
