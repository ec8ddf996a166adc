using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Linq;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>What attention means: scale, masks and biases, as flags and files.</summary>
internal sealed class SemanticsArguments
{
    private readonly Option<double?> _scale = new("--scale")
    {
        Description = "Factor on query·key; default 1/sqrt(head_dim).",
        CustomParser = result => ArgumentText.Number(result, value => float.IsFinite((float)value), "a number that float32 holds"),
    };

    private readonly Option<bool> _causal = new("--causal")
    {
        Description = "Query i sees key j when j <= i + key_len - query_len (bottom-right aligned).",
    };

    private readonly Option<int[]?> _window = new("--window")
    {
        Description = "Sliding window L,R around the query's position; -1 is unbounded.",
        HelpName = "L,R",
        CustomParser = ParseWindow,
    };

    private readonly Option<double> _softcap = new("--softcap")
    {
        Description = "c: score := c * tanh(score / c), before biases; 0 is off.",
        CustomParser = result => ArgumentText.Number(result, value => value >= 0 && float.IsFinite((float)value), "a number of at least 0") ?? 0,
    };

    private readonly Option<string?> _alibi = FileOption("--alibi", "ALiBi slopes [query_heads] or [batch, query_heads].");
    private readonly Option<string?> _sinks = FileOption("--sinks", "One more logit per head in the denominator [query_heads].");
    private readonly Option<string?> _keyLengths = FileOption("--key-lengths", "Keys of each batch row [batch].");
    private readonly Option<string?> _queryLengths = FileOption("--query-lengths", "Queries of each batch row [batch].");
    private readonly Option<string?> _leftpad = FileOption("--leftpad", "Keys of each batch row that are padding before its first [batch].");
    private readonly Option<string?> _packedQueries = FileOption("--cu-seqlens-q", "Packed sequences: where each one's queries begin, and their end [sequences + 1].");
    private readonly Option<string?> _packedKeys = FileOption("--cu-seqlens-k", "Packed sequences: where each one's keys begin, and their end [sequences + 1].");
    private readonly Option<string?> _treeParents = FileOption("--tree-parents", "Queries are nodes of a token tree: each one's parent, -1 for the root [query_len] or [batch, query_len].");
    private readonly Option<string?> _dfsStart = FileOption("--dfs-start", "Depth-first order of the queries [batch, query_len].");
    private readonly Option<string?> _dfsEnd = FileOption("--dfs-end", "Depth-first end of the keys [batch, key_len].");
    private readonly Option<string?> _tailMask = FileOption("--tail-mask", "Boolean mask over the last keys [batch, query_len, tail].");
    private readonly Option<string?> _tailBias = FileOption("--tail-bias", "Bias over the last keys [1 or batch, query_len, tail].");

    /// <summary>Makes the options known to a command.</summary>
    public void AddTo(Command command, SemanticsFiles files)
    {
        command.Add(_scale);
        command.Add(_causal);
        command.Add(_window);
        command.Add(_softcap);
        foreach (Option option in FileOptions(files))
        {
            command.Add(option);
        }

        ArgumentText.AddRule(command, Validate);
    }

    /// <summary>What the command line asks for; files are named, not yet read.</summary>
    public SemanticsRequest Read(ParseResult parsed, SemanticsFiles files)
    {
        string? File(Option<string?> option) => FileOptions(files).Contains(option) ? parsed.GetValue(option) : null;
        int[]? window = ArgumentText.Given(parsed, _window);
        return new SemanticsRequest
        {
            Scale = parsed.GetValue(_scale),
            Causal = parsed.GetValue(_causal),
            WindowLeft = window?[0] ?? -1,
            WindowRight = window?[1] ?? -1,
            Softcap = (float)parsed.GetValue(_softcap),
            Alibi = File(_alibi),
            Sinks = File(_sinks),
            KeyLengths = File(_keyLengths),
            QueryLengths = File(_queryLengths),
            Leftpad = File(_leftpad),
            PackedQueries = File(_packedQueries),
            PackedKeys = File(_packedKeys),
            TreeParents = File(_treeParents),
            DfsStart = File(_dfsStart),
            DfsEnd = File(_dfsEnd),
            TailMask = File(_tailMask),
            TailBias = File(_tailBias),
        };
    }

    private Option<string?>[] FileOptions(SemanticsFiles files) => files switch
    {
        SemanticsFiles.All =>
        [
            _alibi, _sinks, _keyLengths, _queryLengths, _leftpad, _packedQueries, _packedKeys, _treeParents, _dfsStart, _dfsEnd, _tailMask, _tailBias,
        ],
        SemanticsFiles.PerHead => [_alibi, _sinks],
        _ => [],
    };

    private void Validate(CommandResult command)
    {
        bool packed = IsGiven(command, _packedQueries);
        if (packed != IsGiven(command, _packedKeys))
        {
            command.AddError("--cu-seqlens-q and --cu-seqlens-k belong together.");
        }

        Refuse(
            command, _packedQueries, "packed sequences have their lengths from it, and their trees from --dfs-start and --dfs-end",
            _keyLengths, _queryLengths, _leftpad, _treeParents);
        Refuse(command, _treeParents, "it is itself a mask over the last keys", _dfsStart, _dfsEnd, _tailMask, _tailBias);
    }

    private static void Refuse(CommandResult command, Option option, string reason, params Option[] others)
    {
        foreach (Option other in others)
        {
            if (IsGiven(command, option) && IsGiven(command, other))
            {
                command.AddError($"{other.Name} does not go with {option.Name}: {reason}.");
            }
        }
    }

    private static bool IsGiven(CommandResult command, Option option) => command.GetResult(option) is not null;

    private static Option<string?> FileOption(string name, string description) => new(name) { Description = description, HelpName = "FILE" };

    private static int[]? ParseWindow(ArgumentResult result)
    {
        string text = result.Tokens[0].Value;
        string[] sides = text.Split(',');
        if (sides.Length == 2
            && int.TryParse(sides[0], NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int left)
            && int.TryParse(sides[1], NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int right)
            && left >= -1 && right >= -1)
        {
            return [left, right];
        }

        result.AddError($"--window takes two integers of at least -1 as L,R, not '{text}'.");
        return null;
    }
}

/// <summary>Which options with files a command takes.</summary>
internal enum SemanticsFiles
{
    /// <summary>None: the flags alone.</summary>
    None,

    /// <summary>Those with a number for each head: they fit whatever the lengths.</summary>
    PerHead,

    /// <summary>All.</summary>
    All,
}

/// <summary>Scale, masks and biases as the command line names them.</summary>
internal sealed record SemanticsRequest
{
    public double? Scale { get; init; }

    public bool Causal { get; init; }

    public int WindowLeft { get; init; } = -1;

    public int WindowRight { get; init; } = -1;

    public float Softcap { get; init; }

    public string? Alibi { get; init; }

    public string? Sinks { get; init; }

    public string? KeyLengths { get; init; }

    public string? QueryLengths { get; init; }

    public string? Leftpad { get; init; }

    public string? PackedQueries { get; init; }

    public string? PackedKeys { get; init; }

    public string? TreeParents { get; init; }

    public string? DfsStart { get; init; }

    public string? DfsEnd { get; init; }

    public string? TailMask { get; init; }

    public string? TailBias { get; init; }

    /// <summary>The tensors hold packed sequences.</summary>
    public bool IsPacked => PackedQueries is not null;

    /// <summary>The options that need no file.</summary>
    public AttentionOptions Flags() => new()
    {
        Scale = Scale,
        Causal = Causal,
        WindowLeft = WindowLeft,
        WindowRight = WindowRight,
        Softcap = Softcap,
    };
}
