using System;
using System.IO;
using System.Text;
using System.Text.Json;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Output;

/// <summary>One measured result: what ran, what it cost, how far it lies from float64. All JSON keys are always there.</summary>
internal sealed record ResultRow
{
    public required string Algorithm { get; init; }

    public string? Reduction { get; init; }

    public required string Transport { get; init; }

    public required string Device { get; init; }

    public required string Dtype { get; init; }

    public required int Ranks { get; init; }

    public StepMeasurement? Cost { get; init; }

    public VerificationReport? Verification { get; init; }

    /// <summary>Writes the object's members that every result has.</summary>
    public void WriteMembers(Utf8JsonWriter json)
    {
        json.WriteString("algorithm", Algorithm);
        json.WriteString("reduction", Reduction);
        json.WriteString("transport", Transport);
        json.WriteString("device", Device);
        json.WriteString("dtype", Dtype);
        json.WriteNumber("ranks", Ranks);
        WriteNumber(json, "median_us", Cost?.MedianUs);
        WriteNumber(json, "min_us", Cost?.MinUs);
        WriteNumber(json, "p95_us", Cost?.P95Us);
        WriteNumber(json, "compute_us", Cost?.ComputeUs);
        WriteNumber(json, "communication_us", Cost?.CommunicationUs);
        WriteNumber(json, "bytes_sent", Cost?.BytesSent);
        WriteNumber(json, "control_bytes", Cost?.ControlBytes);
        WriteNumber(json, "messages", Cost?.Messages);
        WriteNumber(json, "collectives", Cost?.Collectives);
        WriteNumber(json, "peak_bytes", Cost?.PeakBytes);
        WriteNumber(json, "error_max", Verification?.ErrorMax);
        WriteNumber(json, "error_bound", Verification?.ErrorBound);
        WriteNumber(json, "wrong", Verification?.Wrong);
    }

    /// <summary>One line of JSON.</summary>
    public static string Line(Action<Utf8JsonWriter> writeMembers)
    {
        using var stream = new MemoryStream();
        using (var json = new Utf8JsonWriter(stream))
        {
            json.WriteStartObject();
            writeMembers(json);
            json.WriteEndObject();
        }

        return Encoding.UTF8.GetString(stream.ToArray());
    }

    /// <summary>A number, or null where there is none; JSON has no NaN and no infinity.</summary>
    public static void WriteNumber(Utf8JsonWriter json, string name, double? value)
    {
        if (value is { } number && double.IsFinite(number))
        {
            json.WriteNumber(name, number);
        }
        else
        {
            json.WriteNull(name);
        }
    }

    private static void WriteNumber(Utf8JsonWriter json, string name, long? value)
    {
        if (value is { } number)
        {
            json.WriteNumber(name, number);
        }
        else
        {
            json.WriteNull(name);
        }
    }
}
