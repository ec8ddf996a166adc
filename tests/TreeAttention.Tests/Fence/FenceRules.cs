using System;
using System.Collections.Generic;
using System.Linq;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace TreeAttention.Tests.Fence;

/// <summary>What a golden text leaves out of what the program says: what another run, another machine or another build says otherwise.</summary>
/// <remarks>
/// On both outputs the folder of the case is <c>$DIR</c>. On stdout alone: the version is <c>VERSION</c>; a number with a decimal
/// point is measured, and is <c>#</c> without the blanks that align it; so is the number of bytes behind <c>peak</c>; of what the
/// doctor finds the subject stays. Of a line that is a JSON object every key is a line, in order, with its value, or with the kind
/// of its value where that is measured. Under a launcher stderr is what the program says alone.
/// </remarks>
internal static partial class FenceRules
{
    private static readonly string[] _measuredKeys =
        ["peak_bytes", "control_bytes", "allocated_bytes", "error_max", "error_bound", "version", "detail", "is_there"];

    private static readonly string[] _measuredEndings = ["_us", "_per_s", "_ratio"];

    /// <summary>The lines of stdout as a golden text has them.</summary>
    public static IEnumerable<string> Output(string text, string folder, bool isExact) =>
        Lines(text, folder).SelectMany(line => isExact ? [line] : line.StartsWith('{') ? Json(line) : Plain(line));

    /// <summary>The lines of an output with paths in the case's own terms.</summary>
    public static IEnumerable<string> Lines(string text, string folder)
    {
        if (text.Length == 0)
        {
            return [];
        }

        string[] lines = text.Replace(folder, "$DIR", StringComparison.Ordinal).Split('\n');
        IEnumerable<string> whole = lines[^1].Length == 0 ? lines[..^1] : [.. lines[..^1], lines[^1] + "\\(no newline)"];
        return whole.Select(line => line.EndsWith(' ') ? line[..^1] + "\\x20" : line);
    }

    /// <summary>The lines that the program itself wrote to stderr: not those of a launcher.</summary>
    public static IEnumerable<string> OwnLines(string text, string folder) => Lines(text, folder).Where(line => Own().IsMatch(line));

    private static IEnumerable<string> Plain(string line)
    {
        if (WayOut().IsMatch(line))
        {
            return [];
        }

        line = Finding().Replace(line, "  ok|missing $1 ...");
        line = Version().Replace(line, "VERSION");
        line = Peak().Replace(line, "peak #");
        return [Measured().Replace(line, match => match.Value.StartsWith(' ') ? " #" : "#")];
    }

    private static List<string> Json(string line)
    {
        var lines = new List<string>();
        Describe("", JsonDocument.Parse(line).RootElement, lines);
        return lines;
    }

    private static void Describe(string key, JsonElement value, List<string> lines)
    {
        switch (value.ValueKind)
        {
            case JsonValueKind.Object:
                lines.Add($"{key}{{");
                foreach (JsonProperty member in value.EnumerateObject())
                {
                    Describe($"  {member.Name}: ", member.Value, lines);
                }

                lines.Add("}");
                break;
            case JsonValueKind.Array when value.EnumerateArray().All(element => element.ValueKind == JsonValueKind.Object):
                lines.Add($"{key}[");
                foreach (JsonElement element in value.EnumerateArray())
                {
                    Describe("", element, lines);
                }

                lines.Add("]");
                break;
            case JsonValueKind.Array:
                lines.Add($"{key}[{string.Join(", ", value.EnumerateArray().Select(element => Kind(element)))}]");
                break;
            default:
                lines.Add(key + Text(key.Trim(' ', ':'), value));
                break;
        }
    }

    private static string Text(string key, JsonElement value) =>
        key == "way_out" ? "string|null"
        : value.ValueKind != JsonValueKind.Null && (_measuredKeys.Contains(key) || _measuredEndings.Any(key.EndsWith)) ? Kind(value)
        : value.GetRawText();

    private static string Kind(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.True or JsonValueKind.False => "bool",
        JsonValueKind.Number => "number",
        JsonValueKind.String => "string",
        _ => "null",
    };

    [GeneratedRegex(@"^treeattn|^  \S+: rank \d")]
    private static partial Regex Own();

    [GeneratedRegex(@"^ {25}\S")]
    private static partial Regex WayOut();

    [GeneratedRegex("^  (?:ok     |missing) (.{14}) .*")]
    private static partial Regex Finding();

    [GeneratedRegex(@"\b\d+\.\d+\.\d+(?:\+[0-9a-f]+)?(?![.\d])")]
    private static partial Regex Version();

    [GeneratedRegex(@"\bpeak \d+(?= bytes)")]
    private static partial Regex Peak();

    [GeneratedRegex(@" *(?<![\w.])\d+\.\d+(?:E[-+]?\d+)?")]
    private static partial Regex Measured();
}
