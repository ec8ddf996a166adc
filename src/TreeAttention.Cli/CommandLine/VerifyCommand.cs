using System;
using System.CommandLine;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary><c>treeattn verify</c>: the laws, and the agreement of every algorithm on this very group of ranks.</summary>
internal sealed class VerifyCommand
{
    private readonly GroupArguments _group = new();

    private readonly Option<int> _seed = new("--seed")
    {
        Description = "Seed of the numbers, windows, lengths and masks; the same seed gives the same cases on as many ranks.",
        DefaultValueFactory = _ => 20261121,
        CustomParser = result => ArgumentText.Integer(result, 0, int.MaxValue) ?? 0,
    };

    private readonly Option<int?> _cases = new("--cases")
    {
        Description = "How many cases of the covering array; default all, once. More go through it again with other numbers.",
        CustomParser = result => ArgumentText.Integer(result, 1, 100_000),
    };

    private readonly Option<bool> _json = new("--json") { Description = "The last line of stdout is one JSON object." };

    /// <summary>The command; its action is called with what it asks for.</summary>
    public Command Build(Func<VerifyRequest, GroupOptions, int> action)
    {
        var command = new Command(
            "verify",
            "Holds every algorithm, reduction and layout against float64 on these very ranks, over a pairwise covering array of all types, "
            + "sizes and options; checks the bits that are promised, and that wrong results are noticed.");
        command.Add(_seed);
        command.Add(_cases);
        _group.AddTo(command);
        command.Add(_json);
        command.SetAction(parsed => action(
            new VerifyRequest(parsed.GetValue(_seed), parsed.GetValue(_cases), parsed.GetValue(_json)), _group.Read(parsed)));
        return command;
    }
}

/// <summary>Everything <c>treeattn verify</c> was asked.</summary>
internal sealed record VerifyRequest(int Seed, int? Cases, bool Json);
