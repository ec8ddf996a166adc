using System;
using System.CommandLine;
using TreeAttention.Cli.Arguments;

namespace TreeAttention.Cli.Bench;

/// <summary><c>treeattn bench</c>: tree against ring and the reductions against each other, in nccl-tests' letters.</summary>
internal sealed class BenchCommand
{
    private const int DefaultContext = 8192;
    private const int DefaultHeads = 32;
    private const int DefaultKvHeads = 8;
    private const int DefaultHeadDim = 128;

    private readonly TensorArguments _tensors = new(required: false);
    private readonly SemanticsArguments _semantics = new(SemanticsFiles.None);
    private readonly PlanArguments _plan = new(comparesAll: true);
    private readonly GroupArguments _group = new();

    private readonly Option<int> _begin = SizeOption("--begin", "-b", DefaultContext, "Smallest context (keys).");
    private readonly Option<int> _end = SizeOption("--end", "-e", null, "Largest context; default the smallest.");
    private readonly Option<int> _factor = new("--factor", "-f")
    {
        Description = "Factor from one context to the next.",
        DefaultValueFactory = _ => 2,
        CustomParser = result => ArgumentText.Integer(result, 2, 1024) ?? 2,
    };

    private readonly Option<int> _iterations = CountOption("--iters", "-n", 20, 1, "Timed rounds; every plan runs once in each.");
    private readonly Option<int> _warmup = CountOption("--warmup", "-w", 3, 0, "Rounds before the timed ones.");
    private readonly Option<int> _check = CountOption("--check", "-c", 1, 0, "1: compare each plan with float64 first; 0: do not.");
    private readonly Option<int> _batch = CountOption("--batch", null, 1, 1, "Batch rows.");
    private readonly Option<int> _queryLength = CountOption("--query-len", null, 1, 1, "Queries of each row; 0 stands for the context (prefill).", 0);
    private readonly Option<int> _heads = CountOption("--heads", null, DefaultHeads, 1, "Query heads.");
    private readonly Option<int> _kvHeads = CountOption("--kv-heads", null, DefaultKvHeads, 1, "KV heads.");
    private readonly Option<int> _headDim = CountOption("--head-dim", null, DefaultHeadDim, 1, "Elements of a query, a key and a value.", most: AttentionShape.MaxHeadDim);
    private readonly Option<bool> _ceiling = new("--ceiling") { Description = "Measure read bandwidth and FMA rate of this machine in the same rounds." };
    private readonly Option<bool> _combine = new("--combine") { Description = "Time only the reductions, beside a bare all-reduce of the same bytes." };
    private readonly Option<string?> _out = new("--out") { Description = "Directory for results.jsonl, a row each, synced.", HelpName = "DIR" };
    private readonly Option<bool> _resume = new("--resume") { Description = "Go on where an earlier run into --out, of the same options, was stopped." };
    private readonly Option<bool> _json = new("--json") { Description = "JSON Lines on stdout instead of the table." };

    /// <summary>The command; its action is called with what it asks for.</summary>
    public Command Build(Func<BenchRequest, GroupOptions, int> action)
    {
        var command = new Command("bench", "Times tree and ring attention over a range of contexts; checks, then times, in one run.");
        foreach (Option option in (Option[])[
            _begin, _end, _factor, _iterations, _warmup, _check, _batch, _queryLength, _heads, _kvHeads, _headDim, _ceiling, _combine])
        {
            command.Add(option);
        }

        _tensors.AddTo(command);
        _semantics.AddTo(command);
        _plan.AddTo(command);
        _group.AddTo(command);
        command.Add(_out);
        command.Add(_resume);
        command.Add(_json);
        ArgumentText.AddRule(command, result =>
        {
            if (result.GetResult(_resume) is not null && result.GetResult(_out) is null)
            {
                result.AddError("--resume goes on with an earlier run: give its directory by --out.");
            }

            int heads = ArgumentText.ValueOr(result, _heads, DefaultHeads);
            int kvHeads = ArgumentText.ValueOr(result, _kvHeads, DefaultKvHeads);
            if (kvHeads > 0 && heads % kvHeads != 0)
            {
                result.AddError($"--heads {heads} is not a multiple of --kv-heads {kvHeads}: each KV head serves the same number of query heads.");
            }

            int headDim = ArgumentText.ValueOr(result, _headDim, DefaultHeadDim);
            if (_tensors.SyntheticValueFromKey(result) is { } valueDim && valueDim > headDim)
            {
                result.AddError($"--value-from-key {valueDim} is more than --head-dim {headDim}: values are the first elements of the keys.");
            }

            int begin = ArgumentText.ValueOr(result, _begin, DefaultContext);
            if (result.GetResult(_end) is not null && result.GetValue(_end) < begin)
            {
                result.AddError($"--end {result.GetValue(_end)} is less than --begin {begin}: contexts go from -b up to -e.");
            }
        });
        command.SetAction(parsed => action(Read(parsed), _group.Read(parsed)));
        return command;
    }

    private static Option<int> SizeOption(string name, string alias, int? otherwise, string description) => new(name, alias)
    {
        Description = description + " K, M and G are powers of 1024.",
        DefaultValueFactory = otherwise is { } value ? _ => value : null,
        CustomParser = result => ArgumentText.Size(result, int.MaxValue),
    };

    private static Option<int> CountOption(string name, string? alias, int otherwise, int least, string description, int? special = null, int most = 1_000_000) =>
        new(name, alias is null ? [] : [alias])
        {
            Description = description,
            DefaultValueFactory = _ => otherwise,
            CustomParser = result => ArgumentText.Integer(result, special ?? least, most) ?? otherwise,
        };

    private BenchRequest Read(ParseResult parsed)
    {
        int begin = parsed.GetValue(_begin);
        TensorRequest tensors = _tensors.Read(parsed);
        return new BenchRequest
        {
            Tensors = tensors.Key is null ? null : tensors,
            StorageType = tensors.StorageType ?? ElementType.Float32,
            Scales = tensors.Scales,
            Semantics = _semantics.Read(parsed),
            Plan = _plan.Read(parsed),
            Begin = begin,
            End = parsed.GetResult(_end) is null ? begin : parsed.GetValue(_end),
            Factor = parsed.GetValue(_factor),
            Iterations = parsed.GetValue(_iterations),
            Warmup = parsed.GetValue(_warmup),
            Check = parsed.GetValue(_check) != 0,
            Batch = parsed.GetValue(_batch),
            QueryLength = parsed.GetValue(_queryLength),
            Heads = parsed.GetValue(_heads),
            KvHeads = parsed.GetValue(_kvHeads),
            HeadDim = parsed.GetValue(_headDim),
            ValueFromKey = tensors.ValueFromKey,
            Ceiling = parsed.GetValue(_ceiling),
            Combine = parsed.GetValue(_combine),
            Out = parsed.GetValue(_out),
            Resume = parsed.GetValue(_resume),
            Json = parsed.GetValue(_json),
        };
    }
}

/// <summary>Everything <c>treeattn bench</c> was asked.</summary>
internal sealed record BenchRequest
{
    /// <summary>Real inputs; null: synthetic ones of the sizes below.</summary>
    public TensorRequest? Tensors { get; init; }

    public ElementType StorageType { get; init; }

    /// <summary>Scales of storage that has some.</summary>
    public required ScalesRequest Scales { get; init; }

    public required SemanticsRequest Semantics { get; init; }

    public required PlanRequest Plan { get; init; }

    /// <summary>Smallest context.</summary>
    public int Begin { get; init; }

    /// <summary>Largest context.</summary>
    public int End { get; init; }

    public int Factor { get; init; }

    public int Iterations { get; init; }

    public int Warmup { get; init; }

    public bool Check { get; init; }

    public int Batch { get; init; }

    /// <summary>Queries of a row; 0: as many as keys.</summary>
    public int QueryLength { get; init; }

    public int Heads { get; init; }

    public int KvHeads { get; init; }

    public int HeadDim { get; init; }

    /// <summary>Synthetic values are the first so many elements of the keys (MLA); null: they are tensors of their own.</summary>
    public int? ValueFromKey { get; init; }

    public bool Ceiling { get; init; }

    public bool Combine { get; init; }

    public string? Out { get; init; }

    /// <summary>Contexts that an earlier run has finished are not measured again.</summary>
    public bool Resume { get; init; }

    public bool Json { get; init; }

    /// <summary>Sizes of the synthetic call over <paramref name="context"/> keys.</summary>
    public AttentionShape ShapeOf(int context) =>
        new(Batch, QueryLength == 0 ? context : QueryLength, context, Heads, KvHeads, HeadDim, ValueFromKey ?? HeadDim);
}
