using System;
using System.CommandLine;
using TreeAttention.Cli.Arguments;

namespace TreeAttention.Cli.Attend;

/// <summary><c>treeattn attend</c>: exact attention over files, sharded over ranks, written to files.</summary>
internal sealed class AttendCommand
{
    private readonly TensorArguments _tensors = new(required: true);
    private readonly SemanticsArguments _semantics = new(SemanticsFiles.All);
    private readonly PlanArguments _plan = new();
    private readonly GroupArguments _group = new();

    private readonly Option<string> _output = new("--output") { Description = "Output, float32 .npy, in the order of --layout.", Required = true, HelpName = "FILE" };
    private readonly Option<string?> _lse = new("--lse") { Description = "Log-sum-exp [batch, query_heads, query_len], packed [query_heads, total_q], float32 .npy.", HelpName = "FILE" };
    private readonly Option<bool> _force = new("--force") { Description = "Overwrite existing outputs." };

    private readonly Option<int?> _repeat = new("--repeat", "-n")
    {
        Description = "Timed runs.",
        DefaultValueFactory = _ => 1,
        CustomParser = result => ArgumentText.Integer(result, 1, 1_000_000),
    };

    private readonly Option<int?> _warmup = new("--warmup", "-w")
    {
        Description = "Runs before the timed ones.",
        DefaultValueFactory = _ => 0,
        CustomParser = result => ArgumentText.Integer(result, 0, 1_000_000),
    };

    private readonly Option<bool> _verify = new("--verify") { Description = "Compare with float64: all rows when small, 64 seeded rows else." };
    private readonly Option<bool> _json = new("--json") { Description = "The last line of stdout is one JSON object." };

    /// <summary>The command; its action is called with what it asks for.</summary>
    public Command Build(Func<AttendRequest, GroupOptions, int> action)
    {
        var command = new Command("attend", "Exact attention over files whose keys are sharded over ranks.");
        _tensors.AddTo(command);
        command.Add(_output);
        command.Add(_lse);
        command.Add(_force);
        _semantics.AddTo(command);
        _plan.AddTo(command);
        _group.AddTo(command);
        command.Add(_repeat);
        command.Add(_warmup);
        command.Add(_verify);
        command.Add(_json);
        command.SetAction(parsed => action(Read(parsed), _group.Read(parsed)));
        return command;
    }

    private AttendRequest Read(ParseResult parsed) => new(
        _tensors.Read(parsed), _semantics.Read(parsed), _plan.Read(parsed),
        parsed.GetRequiredValue(_output), parsed.GetValue(_lse), parsed.GetValue(_force),
        parsed.GetValue(_repeat) ?? 1, parsed.GetValue(_warmup) ?? 0, parsed.GetValue(_verify), parsed.GetValue(_json));
}

/// <summary>Everything <c>treeattn attend</c> was asked.</summary>
internal sealed record AttendRequest(
    TensorRequest Tensors, SemanticsRequest Semantics, PlanRequest Plan, string Output, string? Lse, bool Force,
    int Repeat, int Warmup, bool Verify, bool Json);
