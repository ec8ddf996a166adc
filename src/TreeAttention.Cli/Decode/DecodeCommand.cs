using System;
using System.CommandLine;
using System.CommandLine.Parsing;
using TreeAttention.Cli.Arguments;

namespace TreeAttention.Cli.Decode;

/// <summary><c>treeattn decode</c>: a growing sharded KV cache, step by step.</summary>
internal sealed class DecodeCommand
{
    private const int DefaultContext = 8192;
    private const int DefaultSteps = 64;
    private const int DefaultHeads = 32;
    private const int DefaultKvHeads = 8;
    private const int DefaultChunk = 2048;

    private readonly TensorArguments _tensors = new(required: false);
    private readonly SemanticsArguments _semantics = new(SemanticsFiles.PerHead);
    private readonly RotaryArguments _rotary = new();
    private readonly PlanArguments _plan = new(grows: true);
    private readonly GroupArguments _group = new();

    private readonly Option<int?> _context = new("--context")
    {
        Description = $"Keys of each row before the first step; default {DefaultContext}, or the keys of the files that the steps leave. K, M and G are powers of 1024.",
        CustomParser = result => ArgumentText.Size(result, int.MaxValue, least: 0),
    };

    private readonly Option<int?> _steps = CountOption("--steps", 1, $"Steps; default {DefaultSteps}, or as many as the query file has queries for.");
    private readonly Option<int?> _queryLength = CountOption("--query-len", 1, "New tokens of each row in a step, and queries; default 1.");
    private readonly Option<int?> _batch = CountOption("--batch", 1, "Batch rows; default 1.");
    private readonly Option<int?> _heads = CountOption("--heads", 1, $"Query heads; default {DefaultHeads}.");
    private readonly Option<int?> _kvHeads = CountOption("--kv-heads", 1, $"KV heads; default {DefaultKvHeads}.");
    private readonly Option<int?> _headDim = DimOption("--head-dim", "Elements of a query and a key; default 128.");
    private readonly Option<int?> _valueDim = DimOption("--value-dim", "Elements of a value; default --head-dim.");
    private readonly Option<int?> _layers = CountOption("--layers", 1, "Layers, each with a cache of its own over one page table; all get the same numbers. Default 1.");
    private readonly Option<PrefillChoice> _prefill = ArgumentText.Choice<PrefillChoice>(
        "--prefill",
        "Attends to the context with its own queries, causally, while it enters the cache: ring and gather (every rank has a zigzag share of it), or chunked "
        + "(every rank has all of it); none stores it alone. Files then hold the queries of the context too.",
        ("none", default), ("chunked", new(PrefillMethod.Chunked)), ("ring", new(PrefillMethod.Ring)), ("gather", new(PrefillMethod.Gather)));

    private readonly Option<int?> _chunk = CountOption("--chunk", 1, $"Tokens of each row in a chunk of --prefill chunked; default {DefaultChunk}.");
    private readonly Option<CacheMemory?> _cacheMemory = new("--cache-memory")
    {
        Description = "Bytes of keys and values of each rank (K, M and G are powers of 1024), or available: nine tenths of the free memory, shared by "
            + "the ranks that have it in common. Default: room for every row at its longest.",
        HelpName = "BYTES|available",
        CustomParser = result => ArgumentText.Parsed(result, CacheMemory.Parse),
    };

    private readonly Option<int?> _warmup = CountOption("--warmup", 0, "Attention calls before the first step, which append nothing; default 1.", "-w");
    private readonly Option<string?> _output = new("--output") { Description = "Outputs of all steps [batch, steps * query_len, heads, value_dim], float32 .npy, in the order of --layout; with --prefill after those of the context.", HelpName = "FILE" };
    private readonly Option<string?> _lse = new("--lse") { Description = "Log-sum-exp of all steps [batch, heads, steps * query_len], float32 .npy; with --prefill after those of the context.", HelpName = "FILE" };
    private readonly Option<bool> _force = new("--force") { Description = "Overwrite existing outputs." };
    private readonly Option<bool> _verify = new("--verify") { Description = "Compare sampled steps with float64 attention over all that the cache then holds, and sampled rows of --prefill." };
    private readonly Option<bool> _json = new("--json") { Description = "The last line of stdout is one JSON object." };

    /// <summary>The command; its action is called with what it asks for.</summary>
    public Command Build(Func<DecodeRequest, GroupOptions, int> action)
    {
        var command = new Command(
            "decode", "Appends tokens to a KV cache that is sharded over ranks and attends to it, step by step; over files or over synthetic numbers.");
        foreach (Option option in (Option[])[_context, _steps, _queryLength, _batch, _heads, _kvHeads, _headDim, _valueDim, _layers, _prefill, _chunk, _warmup])
        {
            command.Add(option);
        }

        command.Add(_cacheMemory);
        _tensors.AddTo(command);
        _semantics.AddTo(command);
        _rotary.AddTo(command);
        _plan.AddTo(command);
        _group.AddTo(command);
        foreach (Option option in (Option[])[_output, _lse, _force, _verify, _json])
        {
            command.Add(option);
        }

        ArgumentText.AddRule(command, Validate);
        command.SetAction(parsed => action(Read(parsed), _group.Read(parsed)));
        return command;
    }

    private static Option<int?> CountOption(string name, int least, string description, params string[] aliases) => new(name, aliases)
    {
        Description = description,
        CustomParser = result => ArgumentText.Integer(result, least, 1_000_000),
    };

    private static Option<int?> DimOption(string name, string description) => new(name)
    {
        Description = description,
        CustomParser = result => ArgumentText.Integer(result, 1, AttentionShape.MaxHeadDim),
    };

    private void Validate(CommandResult command)
    {
        if (_rotary.IsGiven(command) && _tensors.ValuesAreInKeys(command))
        {
            command.AddError(
                "--rotary does not go with --value-from-key: it would turn the first elements of the keys, and those are the values. Give keys that are rotated already.");
        }

        PrefillMethod? prefill = command.GetValue(_prefill).Method;
        if (command.GetResult(_chunk) is not null && prefill != PrefillMethod.Chunked)
        {
            command.AddError("--chunk belongs to --prefill chunked.");
        }

        if (prefill is PrefillMethod.Ring or PrefillMethod.Gather && _plan.IsReproducible(command))
        {
            command.AddError($"--prefill {prefill.Value.Name()} merges in an order that depends on the ranks, which --reproducible rules out. Use --prefill chunked.");
        }

        if (_tensors.AreGiven(command))
        {
            foreach (Option<int?> option in (Option<int?>[])[_batch, _heads, _kvHeads, _headDim, _valueDim])
            {
                if (command.GetResult(option) is not null)
                {
                    command.AddError($"{option.Name} is a size of synthetic numbers: the files have sizes of their own.");
                }
            }

            return;
        }

        if (_tensors.ValuesAreInKeys(command))
        {
            command.AddError("--value-from-key needs --query and --key.");
        }

        int heads = ArgumentText.ValueOr(command, _heads, DefaultHeads) ?? DefaultHeads;
        int kvHeads = ArgumentText.ValueOr(command, _kvHeads, DefaultKvHeads) ?? DefaultKvHeads;
        if (heads % kvHeads != 0)
        {
            command.AddError($"--heads {heads} is not a multiple of --kv-heads {kvHeads}: each KV head serves the same number of query heads.");
        }
    }

    private DecodeRequest Read(ParseResult parsed)
    {
        TensorRequest tensors = _tensors.Read(parsed);
        bool hasFiles = tensors.Key is not null;
        int headDim = parsed.GetValue(_headDim) ?? 128;
        return new DecodeRequest
        {
            Tensors = hasFiles ? tensors : null,
            StorageType = tensors.StorageType ?? ElementType.Float32,
            Scales = tensors.Scales,
            NonFinite = tensors.NonFinite,
            Semantics = _semantics.Read(parsed),
            Rotary = _rotary.Read(parsed),
            Prefill = parsed.GetValue(_prefill).Method,
            Chunk = parsed.GetValue(_chunk) ?? DefaultChunk,
            Plan = _plan.Read(parsed),
            Context = parsed.GetValue(_context) ?? (hasFiles ? null : DefaultContext),
            Steps = parsed.GetValue(_steps) ?? (hasFiles ? null : DefaultSteps),
            QueryLength = parsed.GetValue(_queryLength) ?? 1,
            Batch = parsed.GetValue(_batch) ?? 1,
            Heads = parsed.GetValue(_heads) ?? DefaultHeads,
            KvHeads = parsed.GetValue(_kvHeads) ?? DefaultKvHeads,
            HeadDim = headDim,
            ValueDim = parsed.GetValue(_valueDim) ?? headDim,
            Layers = parsed.GetValue(_layers) ?? 1,
            CacheMemory = parsed.GetValue(_cacheMemory),
            Warmup = parsed.GetValue(_warmup) ?? 1,
            Output = parsed.GetValue(_output),
            Lse = parsed.GetValue(_lse),
            Force = parsed.GetValue(_force),
            Verify = parsed.GetValue(_verify),
            Json = parsed.GetValue(_json),
        };
    }
}

/// <summary>Everything <c>treeattn decode</c> was asked.</summary>
internal sealed record DecodeRequest
{
    /// <summary>Real inputs; null: synthetic ones of the sizes below.</summary>
    public TensorRequest? Tensors { get; init; }

    /// <summary>Storage of synthetic keys and values.</summary>
    public ElementType StorageType { get; init; }

    /// <summary>Scales of synthetic keys and values.</summary>
    public required ScalesRequest Scales { get; init; }

    public NonFinitePolicy NonFinite { get; init; }

    public required SemanticsRequest Semantics { get; init; }

    public RotaryOptions? Rotary { get; init; }

    public required PlanRequest Plan { get; init; }

    /// <summary>How the queries of the context are attended to; null: the context is only stored.</summary>
    public PrefillMethod? Prefill { get; init; }

    /// <summary>Tokens of a chunk of prefill.</summary>
    public int Chunk { get; init; }

    /// <summary>Keys before the first step; null where files decide.</summary>
    public int? Context { get; init; }

    /// <summary>Steps; null where files decide.</summary>
    public int? Steps { get; init; }

    /// <summary>New tokens, and queries, of each row in a step.</summary>
    public int QueryLength { get; init; }

    public int Batch { get; init; }

    public int Heads { get; init; }

    public int KvHeads { get; init; }

    public int HeadDim { get; init; }

    public int ValueDim { get; init; }

    /// <summary>Layers, each with keys and values of its own.</summary>
    public int Layers { get; init; }

    /// <summary>Memory of each rank for keys and values; null: room for every row at its longest.</summary>
    public CacheMemory? CacheMemory { get; init; }

    /// <summary>Attention calls before the first step, which append nothing.</summary>
    public int Warmup { get; init; }

    public string? Output { get; init; }

    public string? Lse { get; init; }

    public bool Force { get; init; }

    public bool Verify { get; init; }

    public bool Json { get; init; }
}

/// <summary>What <c>--prefill</c> says: a method, or none.</summary>
internal readonly record struct PrefillChoice(PrefillMethod? Method);
