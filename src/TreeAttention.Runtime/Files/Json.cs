using System;
using System.Collections.Generic;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace TreeAttention.Runtime.Files;

/// <summary>A property name inside a JSON text, kept as its place and hash: a header may hold more names than fit as strings.</summary>
/// <param name="At">Where its opening quote stands.</param>
/// <param name="Length">Bytes with both quotes.</param>
/// <param name="Hash">Hash of the name without its escapes, so that <c>"a"</c> and <c>"\u0061"</c> meet.</param>
internal readonly record struct JsonName(int At, int Length, int Hash)
{
    /// <summary>The name that the reader stands on.</summary>
    /// <exception cref="InvalidOperationException">The name holds half of a surrogate pair.</exception>
    public static JsonName Of(Utf8JsonReader reader)
    {
        var hash = default(HashCode);
        hash.AddBytes(reader.ValueIsEscaped ? Encoding.UTF8.GetBytes(reader.GetString()!) : reader.ValueSpan);
        return new JsonName((int)reader.TokenStartIndex, reader.ValueSpan.Length + 2, hash.ToHashCode());
    }

    /// <summary>The name itself.</summary>
    public string In(ReadOnlySpan<byte> json)
    {
        var reader = new Utf8JsonReader(json.Slice(At, Length));
        _ = reader.Read();
        return reader.GetString()!;
    }

    /// <summary>A name that stands twice in the list; null when there is none. Sorts the list.</summary>
    public static JsonName? FindTwice(List<JsonName> names, ReadOnlySpan<byte> json)
    {
        names.Sort(static (left, right) => left.Hash.CompareTo(right.Hash));
        for (int first = 0; first < names.Count; first++)
        {
            for (int other = first + 1; other < names.Count && names[other].Hash == names[first].Hash; other++)
            {
                if (names[first].In(json) == names[other].In(json))
                {
                    return names[first].At > names[other].At ? names[first] : names[other];
                }
            }
        }

        return null;
    }
}

/// <summary>Serialisation without reflection of what ranks tell each other before work.</summary>
[JsonSerializable(typeof(string[]))]
internal sealed partial class RuntimeJson : JsonSerializerContext;
