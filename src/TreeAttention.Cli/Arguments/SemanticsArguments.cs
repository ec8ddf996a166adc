using System;
using System.Collections.Generic;
using System.CommandLine;
using System.CommandLine.Parsing;
using System.Linq;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Cli.Arguments;

/// <summary>What attention means: scale, masks and biases, as flags and files; each one of <see cref="AttentionOption.All"/>.</summary>
internal sealed class SemanticsArguments
{
    private readonly Dictionary<OptionText, Option> _texts = AttentionOption.All.Where(option => option.Text is not null)
        .ToDictionary(option => option.Text!, option => TextOption(option.Text!));

    private readonly Dictionary<OptionArray, Option<string?>> _files;

    /// <summary>The options of a command.</summary>
    /// <param name="files">Which of those that come as files it takes.</param>
    public SemanticsArguments(SemanticsFiles files) => _files = AttentionOption.All.Where(option => IsTaken(option, files))
        .SelectMany(option => option.Arrays)
        .ToDictionary(array => array, array => new Option<string?>(Flags.Names[array.Setting]) { Description = array.Help, HelpName = "FILE" });

    /// <summary>Makes the options known to a command.</summary>
    public void AddTo(Command command)
    {
        foreach (Option option in _texts.Values.Concat(_files.Values))
        {
            command.Add(option);
        }

        ArgumentText.AddRule(command, Validate);
    }

    /// <summary>What the command line asks for; files are named, not yet read.</summary>
    public SemanticsRequest Read(ParseResult parsed) => new(
        _texts.Where(text => text.Value is Option<bool> flag ? parsed.GetValue(flag) : parsed.GetResult(text.Value) is not null)
            .Aggregate(new AttentionOptions(), (options, text) => text.Key.Read(options, TextOf(parsed, text.Value))!),
        [.. _files.Where(file => parsed.GetValue(file.Value) is not null)
            .Select(file => KeyValuePair.Create(file.Key, parsed.GetValue(file.Value)!))]);

    private static bool IsTaken(AttentionOption option, SemanticsFiles files) => files switch
    {
        SemanticsFiles.All => true,
        SemanticsFiles.PerHead => !option.NotIn.HasFlag(OptionUses.Prefill),
        _ => false,
    };

    private static Option TextOption(OptionText text) => text.Rule is null
        ? new Option<bool>(Flags.Names[text.Setting]) { Description = text.Help }
        : new Option<string?>(Flags.Names[text.Setting])
        {
            Description = text.Help,
            HelpName = text.ValueName,
            CustomParser = result =>
            {
                string given = result.Tokens[0].Value;
                if (text.Read(new AttentionOptions(), given) is null)
                {
                    result.AddError($"{text.Setting} takes {text.Rule}, not '{given}'.");
                }

                return given;
            },
        };

    private static string TextOf(ParseResult parsed, Option option) => option is Option<string?> text ? parsed.GetValue(text)! : "";

    private void Validate(CommandResult command)
    {
        if (GivenOf(command, AttentionOption.Packed).Count() == 1)
        {
            command.AddError("--cu-seqlens-q and --cu-seqlens-k belong together.");
        }

        Refuse(
            command, AttentionOption.Packed, OptionUses.Packing,
            "packed sequences have their lengths from it, and their trees from --dfs-start and --dfs-end");
        Refuse(command, AttentionOption.TokenTree, OptionUses.Trees, "it is itself a mask over the last keys");
    }

    private void Refuse(CommandResult command, AttentionOption option, OptionUses use, string reason)
    {
        if (!GivenOf(command, option).Contains(option.Arrays[0]))
        {
            return;
        }

        foreach (OptionArray array in AttentionOption.All.Where(other => other != option && other.NotIn.HasFlag(use)).SelectMany(other => GivenOf(command, other)))
        {
            command.AddError($"{array.Setting} does not go with {option.Arrays[0].Setting}: {reason}.");
        }
    }

    private IEnumerable<OptionArray> GivenOf(CommandResult command, AttentionOption option) =>
        option.Arrays.Where(array => _files.TryGetValue(array, out Option<string?>? file) && command.GetResult(file) is not null);
}

/// <summary>Which options with files a command takes.</summary>
internal enum SemanticsFiles
{
    /// <summary>None: the flags alone.</summary>
    None,

    /// <summary>Those that fit whatever the lengths: a number for each head.</summary>
    PerHead,

    /// <summary>All.</summary>
    All,
}

/// <summary>Scale, masks and biases as the command line names them.</summary>
/// <param name="Flags">The options that need no file.</param>
/// <param name="Files">The file of each option that comes as one and is given.</param>
internal sealed record SemanticsRequest(AttentionOptions Flags, IReadOnlyList<KeyValuePair<OptionArray, string>> Files)
{
    /// <summary>The tensors hold packed sequences.</summary>
    public bool IsPacked => Files.Any(file => AttentionOption.Packed.Arrays.Contains(file.Key));
}

/// <summary>Reads the masks and biases that the command line names as files.</summary>
internal static class SemanticsReader
{
    /// <summary>The options of the call.</summary>
    /// <param name="request">The options as the command line names them.</param>
    /// <param name="shape">Sizes of the tensors.</param>
    /// <param name="nonFinite">What NaN and infinities do; -∞ is as good as a number where an option takes it.</param>
    /// <exception cref="FaultException">A file is missing, bad, or of a shape that no option has.</exception>
    public static AttentionOptions Read(SemanticsRequest request, AttentionShape shape, NonFinitePolicy nonFinite)
    {
        // Packed sequences first: the shapes of others follow from them.
        AttentionOptions options = request.Flags;
        foreach ((OptionArray array, string file) in request.Files.OrderBy(file => AttentionOption.Packed.Arrays.Contains(file.Key) ? 0 : 1))
        {
            (Array values, long[] axes) = Open(array, file);
            RequireShape(array, axes, array.Shapes(shape, options));
            if (nonFinite == NonFinitePolicy.Error && values is float[] numbers)
            {
                RequireNumbers(array, numbers);
            }

            options = array.With(options, shape, values, axes);
        }

        return options;
    }

    private static (Array Values, long[] Axes) Open(OptionArray array, string file) => array.Element switch
    {
        ElementType.Float32 => OptionTensor.Floats(file, Flags.Names[array.Setting]),
        ElementType.Int32 => OptionTensor.Integers(file, Flags.Names[array.Setting]),
        _ => OptionTensor.Booleans(file, Flags.Names[array.Setting]),
    };

    private static void RequireNumbers(OptionArray array, float[] values)
    {
        float least = array.TakesMinusInfinity ? float.NegativeInfinity : float.MinValue;
        int bad = Array.FindIndex(values, value => !(value >= least && value <= float.MaxValue));
        if (bad >= 0)
        {
            string what = FormattableString.Invariant($"{array.Setting} has {values[bad]} as element {bad} in row-major order");
            throw new FaultException(
                FaultCode.BadInput,
                $"{what}: not a number that float32 holds. Repair the file, or let it through with --nan propagate.");
        }
    }

    private static void RequireShape(OptionArray array, long[] axes, long[][] allowed)
    {
        bool fits = allowed.Any(candidate => candidate.Length == axes.Length
            && candidate.Zip(axes).All(pair => pair.First == OptionArray.Free || pair.First == pair.Second));
        if (!fits)
        {
            string rule = string.Join(" or ", allowed.Select(candidate =>
                $"[{string.Join(", ", candidate.Select(axis => axis == OptionArray.Free ? array.FreeAxis : $"{axis}"))}]").Distinct());
            throw new FaultException(FaultCode.BadInput, $"{array.Setting} has shape [{string.Join(", ", axes)}], but the tensors ask for {rule}.");
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
            .. semantics.Files.Select(file => (Flags.Names[file.Key.Setting], (string?)file.Value)), ("--output", output), ("--lse", lse),
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

    // An input may name a tensor inside its file; links and other names of one file are that file.
    private static bool IsSame(string written, string file) =>
        FileKinds.AreSame(written, file) || (TensorFileSpec.PathIn(file) is { } path && FileKinds.AreSame(written, path));
}
