using System;
using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.IO;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Cli.Arguments;

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

/// <summary>Reads the masks and biases that the command line names as files.</summary>
internal static class SemanticsReader
{
    // Stand for lengths that the files themselves say.
    private const long Tail = -1;
    private const long Bounds = -2;

    /// <summary>The options of the call.</summary>
    /// <param name="request">The options as the command line names them.</param>
    /// <param name="shape">Sizes of the tensors.</param>
    /// <param name="nonFinite">What NaN and infinities do; -∞ in sinks and tail bias is as good as a number.</param>
    /// <exception cref="FaultException">A file is missing, bad, or of a shape that no option has.</exception>
    public static AttentionOptions Read(SemanticsRequest request, AttentionShape shape, NonFinitePolicy nonFinite)
    {
        (float[] Values, long[] Shape)? tailBias = request.TailBias is { } bias ? OptionTensor.Floats(bias, "--tail-bias") : null;
        (bool[] Values, long[] Shape)? tailMask = request.TailMask is { } mask ? OptionTensor.Booleans(mask, "--tail-mask") : null;
        if (tailMask is { } givenMask)
        {
            RequireShape("--tail-mask", givenMask.Shape, [shape.Batch, shape.QueryLength, Tail]);
        }

        if (tailBias is { } givenBias)
        {
            RequireShape("--tail-bias", givenBias.Shape, [1, shape.QueryLength, Tail], [shape.Batch, shape.QueryLength, Tail]);
        }

        int[]? packedQueries = Integers(request.PackedQueries, "--cu-seqlens-q", [Bounds]);
        int rows = packedQueries is null ? shape.Batch : packedQueries.Length - 1;
        AttentionOptions options = request.Flags() with
        {
            AlibiSlopes = Floats(request.Alibi, "--alibi", [shape.QueryHeads], [rows, shape.QueryHeads], [1, shape.QueryHeads]),
            Sinks = Floats(request.Sinks, "--sinks", [shape.QueryHeads]),
            KeyLengths = Integers(request.KeyLengths, "--key-lengths", [shape.Batch]),
            QueryLengths = Integers(request.QueryLengths, "--query-lengths", [shape.Batch]),
            KeyStarts = Integers(request.Leftpad, "--leftpad", [shape.Batch]),
            PackedQueries = packedQueries,
            PackedKeys = Integers(request.PackedKeys, "--cu-seqlens-k", [Bounds]),
            DfsStart = Integers(request.DfsStart, "--dfs-start", OfTokens(request, shape.Batch, shape.QueryLength)),
            DfsEnd = Integers(request.DfsEnd, "--dfs-end", OfTokens(request, shape.Batch, shape.KeyLength)),
            TailMask = tailMask?.Values,
            TailMaskLength = (int)(tailMask?.Shape[2] ?? 0),
            TailBias = tailBias?.Values,
            TailBiasLength = (int)(tailBias?.Shape[2] ?? 0),
        };
        if (nonFinite == NonFinitePolicy.Error)
        {
            RequireNumbers("--alibi", options.AlibiSlopes, least: float.MinValue);
            RequireNumbers("--sinks", options.Sinks, least: float.NegativeInfinity);
            RequireNumbers("--tail-bias", options.TailBias, least: float.NegativeInfinity);
        }

        return request.TreeParents is { } file ? WithTrees(options, file, shape) : options;
    }

    // Packed sequences may come without their batch axis, as flash-attn has them.
    private static long[][] OfTokens(SemanticsRequest request, int batch, int length) =>
        request.IsPacked ? [[batch, length], [length]] : [[batch, length]];

    private static AttentionOptions WithTrees(AttentionOptions options, string file, AttentionShape shape)
    {
        int[] parents = Integers(file, "--tree-parents", [shape.QueryLength], [shape.Batch, shape.QueryLength])!;
        int most = shape.QueryLength;
        int rows = Math.Max(1, parents.Length / Math.Max(1, most));
        TokenTree[] trees = [.. Enumerable.Range(0, shape.Batch).Select(row => TreeOf(
            row, parents.AsSpan(row % rows * most, Math.Clamp(options.QueryLengths?[row] ?? most, 0, most))))];
        return TokenTreeMask.Apply(options, shape.Batch, most, trees);
    }

    private static TokenTree TreeOf(int row, ReadOnlySpan<int> parents)
    {
        try
        {
            return TokenTree.FromParents(parents);
        }
        catch (FaultException fault)
        {
            throw new FaultException(fault.Code, $"--tree-parents of batch row {row}: {fault.Message}", fault);
        }
    }

    private static float[]? Floats(string? file, string option, params long[][] allowed)
    {
        if (file is null)
        {
            return null;
        }

        (float[] values, long[] shape) = OptionTensor.Floats(file, option);
        RequireShape(option, shape, allowed);
        return values;
    }

    private static int[]? Integers(string? file, string option, params long[][] allowed)
    {
        if (file is null)
        {
            return null;
        }

        (int[] values, long[] shape) = OptionTensor.Integers(file, option);
        RequireShape(option, shape, allowed);
        return values;
    }

    private static void RequireNumbers(string option, float[]? values, float least)
    {
        int bad = Array.FindIndex(values ?? [], value => !(value >= least && value <= float.MaxValue));
        if (bad >= 0)
        {
            string what = FormattableString.Invariant($"{option} has {values![bad]} as element {bad} in row-major order");
            throw new FaultException(
                FaultCode.BadInput,
                $"{what}: not a number that float32 holds. Repair the file, or let it through with --nan propagate.");
        }
    }

    private static void RequireShape(string option, long[] shape, params long[][] allowed)
    {
        bool fits = allowed.Any(candidate => candidate.Length == shape.Length
            && candidate.Zip(shape).All(pair => pair.First < 0 || pair.First == pair.Second));
        if (!fits)
        {
            string rule = string.Join(" or ", allowed.Select(candidate =>
                $"[{string.Join(", ", candidate.Select(length => length switch { Tail => "tail", Bounds => "sequences + 1", _ => $"{length}" }))}]").Distinct());
            throw new FaultException(FaultCode.BadInput, $"{option} has shape [{string.Join(", ", shape)}], but the tensors ask for {rule}.");
        }
    }
}

/// <summary>Where a command writes: to files of their own, so that even <c>--force</c> replaces nothing that the command reads.</summary>
internal static class OutputPaths
{
    /// <summary>Refuses outputs that are empty, an input, or each other.</summary>
    /// <exception cref="FaultException">The command line names one file twice (2).</exception>
    public static void RequireOwn(TensorRequest? tensors, SemanticsRequest semantics, string? output, string? lse)
    {
        (string Option, string? File)[] named =
        [
            ("--query", tensors?.Query), ("--key", tensors?.Key), ("--value", tensors?.Value),
            ("--key-scale", tensors?.Scales.Key?.File), ("--value-scale", tensors?.Scales.Value?.File),
            ("--alibi", semantics.Alibi), ("--sinks", semantics.Sinks), ("--key-lengths", semantics.KeyLengths),
            ("--query-lengths", semantics.QueryLengths), ("--leftpad", semantics.Leftpad), ("--cu-seqlens-q", semantics.PackedQueries),
            ("--cu-seqlens-k", semantics.PackedKeys), ("--tree-parents", semantics.TreeParents), ("--dfs-start", semantics.DfsStart), ("--dfs-end", semantics.DfsEnd),
            ("--tail-mask", semantics.TailMask), ("--tail-bias", semantics.TailBias), ("--output", output), ("--lse", lse),
        ];
        foreach ((string option, string? written) in named.AsSpan(named.Length - 2))
        {
            if (written is { Length: 0 })
            {
                throw new FaultException(FaultCode.CommandLine, $"{option} names no file: it is empty.");
            }

            foreach ((string other, string? file) in named)
            {
                if (option != other && !string.IsNullOrEmpty(written) && !string.IsNullOrEmpty(file) && IsSame(written, file))
                {
                    throw new FaultException(
                        FaultCode.CommandLine, $"{option} {written} is the file of {other} too, which would be lost. Give {option} a file of its own.");
                }
            }
        }
    }

    // An input may name a tensor inside its file.
    private static bool IsSame(string written, string file)
    {
        (string target, string taken) = (Path.GetFullPath(written), Path.GetFullPath(file));
        return target == taken || taken.StartsWith(target + ":", StringComparison.Ordinal);
    }
}
