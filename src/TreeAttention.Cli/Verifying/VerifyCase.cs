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

    /// <summary>The call's numbers, whole on every rank.</summary>
    public SyntheticTensors CreateTensors()
    {
        var tensors = new SyntheticTensors(Problem.Shape, Seed);
        for (int position = 0; position < Problem.Shape.KeyLength; position++)
        {
            tensors.FillKey(position);
        }

        return tensors;
    }

    /// <summary>The values of the call.</summary>
    public TensorView ValuesOf(SyntheticTensors tensors) =>
        ValuesInKeys ? tensors.Key.TruncateLastAxis("value", Problem.Shape.ValueDim) : tensors.Value;
}
