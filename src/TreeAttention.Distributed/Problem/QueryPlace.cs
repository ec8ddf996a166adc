using System;

namespace TreeAttention.Distributed;

/// <summary>Where one query stands among the keys: the keys of its sequence, and its own position.</summary>
/// <remarks>Blittable, 16 bytes; devices keep tables of it.</remarks>
/// <param name="First">Its sequence's first key.</param>
/// <param name="End">One past its sequence's last key.</param>
/// <param name="Position">Where the query itself stands on the key axis: what causal, window and ALiBi count from. The last query of a sequence stands at its last key.</param>
/// <param name="Sequence">The batch row, or the packed sequence.</param>
public readonly record struct QueryPlace(int First, int End, int Position, int Sequence)
{
    /// <summary>[queries] the places of packed sequences.</summary>
    /// <param name="queryBounds">[sequences + 1] as <see cref="AttentionOptions.PackedQueries"/>.</param>
    /// <param name="keyBounds">[sequences + 1] as <see cref="AttentionOptions.PackedKeys"/>.</param>
    internal static QueryPlace[] OfPacked(ReadOnlySpan<int> queryBounds, ReadOnlySpan<int> keyBounds)
    {
        var places = new QueryPlace[queryBounds[^1]];
        for (int sequence = 0; sequence < queryBounds.Length - 1; sequence++)
        {
            for (int i = queryBounds[sequence]; i < queryBounds[sequence + 1]; i++)
            {
                int fromLast = queryBounds[sequence + 1] - i;
                places[i] = new QueryPlace(keyBounds[sequence], keyBounds[sequence + 1], keyBounds[sequence + 1] - fromLast, sequence);
            }
        }

        return places;
    }
}
