using System;
using System.Collections.Generic;
using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Cli.Arguments;

/// <summary>Where queries, keys and values come from: <c>--query --key --value --layout --dtype --value-from-key --nan</c>.</summary>
internal sealed class TensorArguments
{
    private readonly Option<string?> _query = new("--query") { Description = "Queries [batch, query_len, query_heads, head_dim].", HelpName = "FILE" };
    private readonly Option<string?> _key = new("--key") { Description = "Keys [batch, key_len, kv_heads, head_dim].", HelpName = "FILE" };
    private readonly Option<string?> _value = new("--value") { Description = "Values [batch, key_len, kv_heads, value_dim].", HelpName = "FILE" };

    private readonly Option<AxisOrder> _layout = ArgumentText.Choice(
        "--layout", "Order of the axes of the inputs and of the output.", ("bshd", AxisOrder.Bshd), ("bhsd", AxisOrder.Bhsd));

    private readonly Option<ElementType?> _dtype = ArgumentText.Choice<ElementType?>(
        "--dtype", "Storage of keys and values; default that of the key file.",
        [.. StorageType.Stored.Select(type => (type.Name, (ElementType?)type.Type))]);

    private readonly Option<ScaleRequest?> _keyScale = new("--key-scale")
    {
        Description = $"What a stored {StorageType.ScaledNames("or")} key is multiplied by: a number, a file [kv_heads], or auto (the largest magnitude of each KV head, / the largest element); default 1.",
        HelpName = "NUMBER|FILE|auto",
        CustomParser = ScaleRequest.Parse,
    };

    private readonly Option<ScaleRequest?> _valueScale = new("--value-scale")
    {
        Description = $"What a stored {StorageType.ScaledNames("or")} value is multiplied by: a number, a file [kv_heads], or auto; default 1.",
        HelpName = "NUMBER|FILE|auto",
        CustomParser = ScaleRequest.Parse,
    };

    private readonly Option<int?> _valueFromKey = new("--value-from-key")
    {
        Description = "Values are the first N elements of each key (MLA); then there is no --value.",
        HelpName = "N",
        CustomParser = result => ArgumentText.Integer(result, 1, AttentionShape.MaxHeadDim),
    };

    private readonly Option<NonFinitePolicy> _nan = ArgumentText.Choice(
        "--nan", "What NaN and infinities in the inputs do.",
        ("error", NonFinitePolicy.Error), ("propagate", NonFinitePolicy.Propagate));

    private readonly bool _required;

    /// <summary>The options of a command that must have files (attend) or may have them (bench).</summary>
    public TensorArguments(bool required)
    {
        _required = required;
        _query.Required = required;
        _key.Required = required;
    }

    /// <summary>Makes the options known to a command.</summary>
    public void AddTo(Command command)
    {
        foreach (Option option in (Option[])[_query, _key, _value, _layout, _dtype, _keyScale, _valueScale, _valueFromKey, _nan])
        {
            command.Add(option);
        }

        ArgumentText.AddRule(command, Validate);
    }

    /// <summary>What the command line asks for; the file names are null where a benchmark makes its own tensors.</summary>
    public TensorRequest Read(ParseResult parsed) => new(
        parsed.GetValue(_query), parsed.GetValue(_key), parsed.GetValue(_value), parsed.GetValue(_layout) == AxisOrder.Bhsd, parsed.GetValue(_dtype),
        parsed.GetValue(_valueFromKey), parsed.GetValue(_nan),
        new ScalesRequest(parsed.GetValue(_keyScale), parsed.GetValue(_valueScale), parsed.GetValue(_valueFromKey) is not null));

    /// <summary>What <c>--value-from-key</c> says of tensors that a benchmark makes itself; null without it, or with files.</summary>
    public int? SyntheticValueFromKey(CommandResult command) => command.GetResult(_key) is null ? command.GetValue(_valueFromKey) : null;

    /// <summary>Files are named, as a rule sees it.</summary>
    public bool AreGiven(CommandResult command) => command.GetResult(_key) is not null;

    /// <summary><c>--value-from-key</c> is given, as a rule sees it.</summary>
    public bool ValuesAreInKeys(CommandResult command) => command.GetResult(_valueFromKey) is not null;

    private void Validate(CommandResult command)
    {
        bool key = command.GetResult(_key) is not null;
        bool value = command.GetResult(_value) is not null;
        bool valueFromKey = command.GetResult(_valueFromKey) is not null;
        if (key && value == valueFromKey)
        {
            command.AddError("Give either --value FILE, or --value-from-key N for values that are the first N elements of the keys.");
        }

        if (!_required && (command.GetResult(_query) is not null) != key)
        {
            command.AddError("--query and --key belong together.");
        }

        bool scales = command.GetResult(_keyScale) is not null || command.GetResult(_valueScale) is not null;
        ElementType? type = command.GetValue(_dtype);
        if (scales && (type is { } stored ? !StorageType.Of(stored).HasScales : !key))
        {
            command.AddError($"--key-scale and --value-scale belong to --dtype {StorageType.ScaledNames("or")}.");
        }

        if (valueFromKey && command.GetResult(_valueScale) is not null)
        {
            command.AddError("With --value-from-key values are a part of the keys and have --key-scale: leave --value-scale out.");
        }
    }
}

/// <summary>Input tensors as the command line names them.</summary>
/// <param name="Query">File of the queries.</param>
/// <param name="Key">File of the keys.</param>
/// <param name="Value">File of the values; null with <paramref name="ValueFromKey"/>.</param>
/// <param name="HeadMajor">Tensors are [batch, heads, length, dim] instead of [batch, length, heads, dim].</param>
/// <param name="StorageType">Storage of keys and values; null: that of the key file.</param>
/// <param name="ValueFromKey">Values are the first so many elements of the keys.</param>
/// <param name="NonFinite">What NaN and infinities do.</param>
/// <param name="Scales">Scales of a storage type that has some.</param>
internal sealed record TensorRequest(
    string? Query, string? Key, string? Value, bool HeadMajor, ElementType? StorageType, int? ValueFromKey, NonFinitePolicy NonFinite,
    ScalesRequest Scales);

/// <summary>Order of a tensor's axes in a file.</summary>
internal enum AxisOrder
{
    /// <summary>[batch, length, heads, dim]</summary>
    Bshd,

    /// <summary>[batch, heads, length, dim]</summary>
    Bhsd,
}

/// <summary>One scale of a storage type that has some as the command line gives it: a number for all KV heads, a file with one for each, or auto.</summary>
/// <param name="Number">The number; null when there is a file, or auto.</param>
/// <param name="File">As <see cref="TensorFile.Open"/> takes it.</param>
internal sealed record ScaleRequest(float? Number, string? File)
{
    private const string Auto = "auto";

    // As C and Python write it: a number out of range, not the name of a file.
    private static readonly HashSet<string> _infinities = new(["inf", "+inf", "-inf"], StringComparer.OrdinalIgnoreCase);

    /// <summary>The scales follow from the numbers that are stored.</summary>
    public bool IsAuto => Number is null && File is null;

    /// <summary>As it was given, in every locale.</summary>
    public override string ToString() => File ?? Number?.ToString(CultureInfo.InvariantCulture) ?? Auto;

    /// <summary>Reads the text of an option.</summary>
    public static ScaleRequest? Parse(ArgumentResult result)
    {
        string text = result.Tokens[0].Value;
        if (!double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double number))
        {
            if (!_infinities.Contains(text))
            {
                return new ScaleRequest(null, text == Auto ? null : text);
            }

            number = double.PositiveInfinity;
        }

        if (KeyValueScales.IsScale((float)number))
        {
            return new ScaleRequest((float)number, null);
        }

        result.AddError($"{(result.Parent as OptionResult)?.Option.Name} takes a number from 1e-30 to 1e30, a file of one for each KV head, or auto, not '{text}'.");
        return null;
    }

    /// <summary>[kv_heads] the scales; 1 where they are not known yet.</summary>
    /// <exception cref="FaultException">The file is missing (66), or has other than [kv_heads] scales (65).</exception>
    public static float[] Read(ScaleRequest? request, string option, int kvHeads)
    {
        float[] scales = new float[kvHeads];
        if (request?.File is not { } file)
        {
            Array.Fill(scales, request?.Number ?? 1f);
            return scales;
        }

        (float[] values, long[] shape) = OptionTensor.Floats(file, option);
        if (shape.Length != 1 || values.Length != kvHeads)
        {
            throw new FaultException(FaultCode.BadInput, $"{option} has shape [{string.Join(", ", shape)}], but the keys ask for [{kvHeads}]: one scale for each KV head.");
        }

        int bad = Array.FindIndex(values, value => !KeyValueScales.IsScale(value));
        if (bad >= 0)
        {
            throw new FaultException(
                FaultCode.BadInput, string.Create(CultureInfo.InvariantCulture, $"{option} has {values[bad]} as element {bad}: scales lie between 1e-30 and 1e30. Repair the file."));
        }

        return values;
    }
}

/// <summary>The scales of a storage type that has some as the command line gives them.</summary>
/// <param name="Key">Of keys; null: 1.</param>
/// <param name="Value">Of values; null: 1.</param>
/// <param name="ValuesInKeys">Values are a part of the keys and have their scales.</param>
internal sealed record ScalesRequest(ScaleRequest? Key, ScaleRequest? Value, bool ValuesInKeys)
{
    /// <summary>Some scales follow from the numbers.</summary>
    public bool IsAuto => Key is { IsAuto: true } || Value is { IsAuto: true };

    /// <summary>The scales for a storage type, 1 where they follow from the numbers; null where the command line gives none.</summary>
    /// <exception cref="FaultException">Scales are given, and storage has none (2); or a file is missing or bad.</exception>
    public KeyValueScales? Read(ElementType storage, int kvHeads)
    {
        if (Key is null && Value is null)
        {
            return null;
        }

        if (!StorageType.Of(storage).HasScales)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"--key-scale and --value-scale belong to {StorageType.ScaledNames("or")} storage, but keys and values are stored as {storage.ShortName()}. Give --dtype {StorageType.ScaledNames("or")}, or no scales.");
        }

        float[] keys = ScaleRequest.Read(Key, "--key-scale", kvHeads);
        return new KeyValueScales(keys, ValuesInKeys ? keys : ScaleRequest.Read(Value, "--value-scale", kvHeads));
    }
}
