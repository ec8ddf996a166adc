using System;
using System.CommandLine.Parsing;
using System.Globalization;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>One scale of f8e4m3 storage as the command line gives it: a number for all KV heads, or a file with one for each.</summary>
/// <param name="Number">The number; null when there is a file.</param>
/// <param name="File">As <see cref="TensorFile.Open"/> takes it.</param>
internal sealed record ScaleRequest(float? Number, string? File)
{
    /// <summary>As it was given, in every locale.</summary>
    public override string ToString() => File ?? Number!.Value.ToString(CultureInfo.InvariantCulture);

    /// <summary>Reads the text of an option.</summary>
    public static ScaleRequest? Parse(ArgumentResult result)
    {
        string text = result.Tokens[0].Value;
        if (!double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double number))
        {
            return new ScaleRequest(null, text);
        }

        if (KeyValueScales.IsScale((float)number))
        {
            return new ScaleRequest((float)number, null);
        }

        result.AddError($"{(result.Parent as OptionResult)?.Option.Name} takes a number from 1e-30 to 1e30, or a file of one for each KV head, not '{text}'.");
        return null;
    }

    /// <summary>[kv_heads] the scales.</summary>
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

/// <summary>The scales of f8e4m3 storage as the command line gives them.</summary>
/// <param name="Key">Of keys; null: 1.</param>
/// <param name="Value">Of values; null: 1.</param>
/// <param name="ValuesInKeys">Values are a part of the keys and have their scales.</param>
internal sealed record ScalesRequest(ScaleRequest? Key, ScaleRequest? Value, bool ValuesInKeys)
{
    /// <summary>The scales for a storage type; null where the command line gives none.</summary>
    /// <exception cref="FaultException">Scales are given, and storage is not f8e4m3 (2); or a file is missing or bad.</exception>
    public KeyValueScales? Read(ElementType storage, int kvHeads)
    {
        if (Key is null && Value is null)
        {
            return null;
        }

        if (storage != ElementType.Float8E4M3)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"--key-scale and --value-scale belong to f8e4m3 storage, but keys and values are stored as {storage.ShortName()}. Give --dtype f8e4m3, or no scales.");
        }

        float[] keys = ScaleRequest.Read(Key, "--key-scale", kvHeads);
        return new KeyValueScales(keys, ValuesInKeys ? keys : ScaleRequest.Read(Value, "--value-scale", kvHeads));
    }
}
