using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Tests.Verification.Mutants;
using Xunit;

namespace TreeAttention.Tests.Verification;

/// <summary><c>treeattn verify</c> notices whatever is wrong with the runtime's masks, biases and positions.</summary>
public sealed class MaskMutantTests(ITestOutputHelper output)
{
    private const string Chosen = "TREEATTN_TEST_MASK_MUTANTS";

    [Fact]
    public void Every_planted_mutant_of_the_mask_fails_a_case_of_verify_that_holds_without_it()
    {
        const int Seed = 20261121;
        var runtime = new MutatedRuntime(MaskMutants.All);
        bool isAll = Environment.GetEnvironmentVariable(Chosen) == "all"; // nightly; else one of each expression, and all are planted

        (int Number, Mutant Mutant)[] tried = isAll ? [.. Numbered()] : OneOfEachExpression(new Random(Seed));
        (Mutant Mutant, int? Failed)[] trials = [.. tried.Select(mutant => (mutant.Mutant, runtime.FirstFailure(mutant.Number)))];
        int? failedWithout = runtime.FirstFailure(0);

        output.WriteLine($"{trials.Length} of {MaskMutants.All.Count} mutants, noticed by cases {string.Join(' ', runtime.Failed.Order())}");
        Assert.InRange(trials.Length, 20, MaskMutants.All.Count);
        Assert.Empty(trials.Where(trial => trial.Failed is null).Select(trial => trial.Mutant.Name)); // survivors
        Assert.Null(failedWithout);
    }

    [Fact]
    public void Mutants_are_choices_between_the_right_and_the_wrong_expression()
    {
        Mutant[] mutants = [new("more", "a.cs", "i + 1", "i + 2"), new("other file", "b.cs", "i", "j"), new("less", "a.cs", "i + 1", "i")];

        string planted = Mutant.Plant("a.cs", "return i + 1;", mutants);

        Assert.Equal(
            "return (global::TreeAttention.Distributed.Planted.Is(1) ? (i + 2) : global::TreeAttention.Distributed.Planted.Is(3) ? (i) : (i + 1));",
            planted);
    }

    [Theory, InlineData("return i - 1;"), InlineData("return i + 1 > i + 1;")]
    public void An_expression_that_is_not_there_exactly_once_is_named_with_its_mutant(string text)
    {
        Mutant[] mutants = [new("one key more", "a.cs", "i + 1", "i + 2")];

        Exception error = Assert.Throws<InvalidOperationException>(() => Mutant.Plant("a.cs", text, mutants));

        Assert.Contains("'one key more': its expression must occur exactly once in a.cs", error.Message, StringComparison.Ordinal);
    }

    private static IEnumerable<(int Number, Mutant Mutant)> Numbered() => MaskMutants.All.Select((mutant, index) => (index + 1, mutant));

    private static (int Number, Mutant Mutant)[] OneOfEachExpression(Random random) =>
    [
        .. Numbered().GroupBy(mutant => (mutant.Mutant.File, mutant.Mutant.From))
            .Select(mutants => mutants.ElementAt(random.Next(mutants.Count()))),
    ];
}
