using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace TreeAttention.Cli.Arguments;

/// <summary>Rotary embedding of queries and keys: <c>--rotary --rotary-base --rotary-interleaved --rotary-scaling</c>.</summary>
internal sealed class RotaryArguments
{
    private readonly Option<int?> _dim = new("--rotary")
    {
        Description = "Rotate the first N dimensions of queries and keys by their positions; N is even.",
        HelpName = "N",
        CustomParser = result => ArgumentText.Integer(result, 2, AttentionShape.MaxHeadDim),
    };

    private readonly Option<double?> _base = new("--rotary-base")
    {
        Description = "Base of the rotary frequencies; default 10000 (Llama 3: 500000).",
        CustomParser = result => ArgumentText.Number(result, value => value > 0, "a number above 0"),
    };

    private readonly Option<bool> _interleaved = new("--rotary-interleaved")
    {
        Description = "Rotate neighbouring dimensions (GPT-J, flash-attn's default), not the two halves (GPT-NeoX, Llama).",
    };

    private readonly Option<double[]?> _scaling = new("--rotary-scaling")
    {
        Description = "Llama 3's frequency scaling: factor, low and high frequency factor, original context, as 8,1,4,8192.",
        HelpName = "F,L,H,N",
        CustomParser = ParseScaling,
    };

    /// <summary>Makes the options known to a command.</summary>
    public void AddTo(Command command)
    {
        foreach (Option option in (Option[])[_dim, _base, _interleaved, _scaling])
        {
            command.Add(option);
        }

        ArgumentText.AddRule(command, result =>
        {
            if (result.GetResult(_dim) is null
                && (result.GetResult(_base) is not null || result.GetResult(_scaling) is not null || result.GetValue(_interleaved)))
            {
                result.AddError("--rotary-base, --rotary-interleaved and --rotary-scaling need --rotary N.");
            }

            if (result.GetResult(_dim) is not null && result.GetValue(_dim) % 2 != 0)
            {
                result.AddError($"--rotary {result.GetValue(_dim)} is odd: dimensions turn in pairs.");
            }
        });
    }

    /// <summary>A rotation is asked for, as a rule sees it.</summary>
    public bool IsGiven(CommandResult command) => command.GetResult(_dim) is not null;

    /// <summary>What the command line asks for; null for no rotation.</summary>
    public RotaryOptions? Read(ParseResult parsed)
    {
        if (parsed.GetValue(_dim) is not { } dim)
        {
            return null;
        }

        double[]? scaling = parsed.GetResult(_scaling) is null ? null : parsed.GetValue(_scaling);
        return new RotaryOptions(dim, parsed.GetValue(_base) ?? 10000, parsed.GetValue(_interleaved))
        {
            Scaling = scaling is null ? null : new Llama3Scaling(scaling[0], scaling[1], scaling[2], (int)scaling[3]),
        };
    }

    private static double[]? ParseScaling(ArgumentResult result)
    {
        string text = result.Tokens[0].Value;
        string[] parts = text.Split(',');
        double[] values = new double[parts.Length];
        for (int i = 0; i < parts.Length; i++)
        {
            if (!double.TryParse(parts[i], NumberStyles.Float, CultureInfo.InvariantCulture, out values[i]) || !double.IsFinite(values[i]))
            {
                values = [];
                break;
            }
        }

        if (values.Length == 4 && values[0] >= 1 && values[1] > 0 && values[2] > values[1] && values[3] is >= 1 and <= int.MaxValue && values[3] % 1 == 0)
        {
            return values;
        }

        result.AddError(
            $"--rotary-scaling takes a factor of at least 1, a low frequency factor above 0, a larger high one and a whole context, as 8,1,4,8192, not '{text}'.");
        return null;
    }
}
