using System;
using System.Globalization;
using System.Linq;
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

        Round(tensors.Query);
        Round(tensors.Key);
        Round(tensors.Value);
        return tensors;
    }

    /// <summary>The values of the call.</summary>
    public TensorView ValuesOf(SyntheticTensors tensors) =>
        ValuesInKeys ? tensors.Key.TruncateLastAxis("value", Problem.Shape.ValueDim) : tensors.Value;

    private void Round(TensorView tensor)
    {
        if (StorageType != ElementType.Float32)
        {
            Span<float> numbers = new Region(tensor.Address, tensor.Count * sizeof(float), tensor.Type, MemoryPlace.Host).AsSpan<float>();
            byte[] stored = new byte[numbers.Length * StorageType.SizeInBytes()];
            ElementConversion.FromFloat(numbers, StorageType, stored);
            ElementConversion.ToFloat(stored, StorageType, numbers);
        }
    }
}
