using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;

namespace TreeAttention.Testing.Cases;

/// <summary>Which random problem: everything that a failing test needs to print, and what shrinking makes smaller.</summary>
/// <param name="Seed">Of options and numbers.</param>
/// <param name="Shape">Sizes.</param>
/// <param name="Options">A level for each of <see cref="OptionLevels.Names"/>.</param>
/// <param name="Type">Element type of query, key and value.</param>
/// <param name="Magnitude">Standard deviation of queries and keys.</param>
/// <param name="ValueMagnitude">Standard deviation of values.</param>
public sealed record ProblemRecipe(
    int Seed, AttentionShape Shape, int[] Options, ElementType Type = ElementType.Float32, double Magnitude = 1, double ValueMagnitude = 1)
{
    private IEnumerable<string> UsedOptions =>
        OptionLevels.Names.Zip(Options, (name, level) => $"{name}={level}").Where((_, option) => Options[option] > 0);

    /// <inheritdoc/>
    public override string ToString() =>
        $"seed {Seed}, {Shape}, options [{string.Join(", ", UsedOptions)}], {Type.ShortName()}, magnitudes {Magnitude} and {ValueMagnitude}";
}

/// <summary>A random attention call with its tensors: awkward sizes, any set of options, reproducible from one seed.</summary>
public sealed class RandomProblem : IDisposable
{
    private static readonly int[] _dims = [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 70, 80, 128, 576];

    private readonly HostTensor _query;
    private readonly HostTensor _key;
    private readonly HostTensor _value;

    private RandomProblem(ProblemRecipe recipe)
    {
        AttentionShape shape = OptionLevels.NeedOneBatchRow(recipe.Options) ? recipe.Shape with { Batch = 1 } : recipe.Shape;
        Recipe = recipe with { Shape = shape };
        Problem = new AttentionProblem(shape, OptionLevels.Draw(shape, recipe.Options, recipe.Seed));
        _query = HostTensor.Normal(
            "query", recipe.Type, [shape.Batch, shape.QueryLength, shape.QueryHeads, shape.HeadDim], recipe.Seed + 1, recipe.Magnitude);
        _key = HostTensor.Normal(
            "key", recipe.Type, [shape.Batch, shape.KeyLength, shape.KvHeads, shape.HeadDim], recipe.Seed + 2, recipe.Magnitude);
        _value = HostTensor.Normal(
            "value", recipe.Type, [shape.Batch, shape.KeyLength, shape.KvHeads, shape.ValueDim], recipe.Seed + 3, recipe.ValueMagnitude);
    }

    public ProblemRecipe Recipe { get; }

    internal AttentionProblem Problem { get; }

    public TensorView Query => _query.View;

    public TensorView Key => _key.View;

    public TensorView Value => _value.View;

    /// <summary>What the references take.</summary>
    internal ReferenceCall Call => new(Problem.Shape, Problem.Options, Query, Key, Value);

    /// <summary>A problem with awkward sizes, small enough to be checked in full.</summary>
    /// <param name="seed">The same seed gives the same problem.</param>
    /// <param name="mostKeys">Keys at most; one in ten has none, one in five fewer than eight.</param>
    /// <param name="type">Element type of the tensors.</param>
    /// <param name="magnitude">Standard deviation of queries and keys.</param>
    public static RandomProblem Create(int seed, int mostKeys = 80, ElementType type = ElementType.Float32, double magnitude = 1) =>
        Create(RecipeOf(seed, mostKeys) with { Type = type, Magnitude = magnitude });

    /// <summary>The problem of a recipe.</summary>
    public static RandomProblem Create(ProblemRecipe recipe) => new(recipe);

    /// <summary>A random recipe.</summary>
    public static ProblemRecipe RecipeOf(int seed, int mostKeys = 80)
    {
        var random = new Random(seed);
        int[] groups = [1, 1, 2, 3, 4, 8, 16];
        int kvHeads = random.Next(1, 4);
        int keys = random.Next(10) switch { 0 => 0, 1 or 2 => random.Next(1, 8), _ => random.Next(8, mostKeys + 1) };
        int dim = _dims[random.Next(_dims.Length)];
        var shape = new AttentionShape(
            random.Next(1, 4), random.Next(1, 9), keys, kvHeads * groups[random.Next(groups.Length)], kvHeads, dim,
            random.Next(2) == 0 ? dim : _dims[random.Next(_dims.Length - 1)]);
        int[] options = [.. OptionLevels.Counts.Select(levels => random.Next(2) == 0 ? 0 : random.Next(levels))];
        return new ProblemRecipe(seed, shape, WithoutConflicts(options));
    }

    /// <summary>Runs a property on a recipe; when it fails, finds a smaller recipe that still fails and names it.</summary>
    public static void Holds(ProblemRecipe recipe, Action<RandomProblem> property)
    {
        if (FailureOf(recipe, property) is not { } failure)
        {
            return;
        }

        string whole = recipe.ToString();
        for (bool smaller = true; smaller;)
        {
            smaller = false;
            foreach (ProblemRecipe candidate in Smaller(recipe))
            {
                if (FailureOf(candidate, property) is { } again)
                {
                    (recipe, failure, smaller) = (candidate, again, true);
                    break;
                }
            }
        }

        throw new InvalidOperationException($"Fails for {recipe} (shrunk from {whole}): {failure.Message}", failure);
    }

    public void Dispose()
    {
        _query.Dispose();
        _key.Dispose();
        _value.Dispose();
    }

    // An option that does not go with those before it is left out.
    private static int[] WithoutConflicts(int[] options)
    {
        int[] settled = new int[options.Length];
        for (int i = 0; i < options.Length; i++)
        {
            settled[i] = options[i];
            settled[i] = OptionLevels.GoTogether(settled) ? options[i] : 0;
        }

        return settled;
    }

    // Whatever a property throws is its failure.
    private static Exception? FailureOf(ProblemRecipe recipe, Action<RandomProblem> property)
    {
        using RandomProblem problem = Create(recipe);
        return Xunit.Record.Exception(() => property(problem));
    }

    private static IEnumerable<ProblemRecipe> Smaller(ProblemRecipe recipe)
    {
        AttentionShape shape = recipe.Shape;
        AttentionShape[] shapes =
        [
            shape with { Batch = shape.Batch / 2 }, shape with { KeyLength = shape.KeyLength / 2 }, shape with { KeyLength = shape.KeyLength - 1 },
            shape with { QueryLength = shape.QueryLength / 2 }, shape with { QueryLength = shape.QueryLength - 1 },
            shape with { QueryHeads = 1, KvHeads = 1 }, shape with { QueryHeads = shape.KvHeads },
            shape with { HeadDim = shape.HeadDim / 2 }, shape with { ValueDim = shape.ValueDim / 2 },
        ];
        foreach (AttentionShape candidate in shapes)
        {
            if (candidate != shape && candidate is { Batch: > 0, KeyLength: >= 0, QueryLength: > 0, HeadDim: > 0, ValueDim: > 0 })
            {
                yield return recipe with { Shape = candidate };
            }
        }

        for (int i = 0; i < recipe.Options.Length; i++)
        {
            if (recipe.Options[i] > 0)
            {
                yield return recipe with { Options = [.. recipe.Options.Select((level, index) => index == i ? 0 : level)] };
            }
        }
    }
}
