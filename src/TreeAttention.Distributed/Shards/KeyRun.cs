using System;

namespace TreeAttention.Distributed;

/// <summary>Keys of one rank in ascending position: blocks of <c>Block</c> neighbours, one block every <c>Stride</c> positions.</summary>
/// <remarks>
/// The whole position arithmetic. Contiguous keys are one block; striped keys are blocks of one. Positions ascend with the
/// index (Stride &gt;= Block), so an interval of positions is always an interval of indices.
/// </remarks>
/// <param name="First">Position of the first key.</param>
/// <param name="Count">Number of keys.</param>
/// <param name="Block">Neighbouring keys in a block, at least 1.</param>
/// <param name="Stride">Positions from the start of one block to the next, at least <paramref name="Block"/>.</param>
public readonly record struct KeyRun(int First, int Count, int Block, int Stride)
{
    /// <summary>Keys with neighbouring positions.</summary>
    public static KeyRun Contiguous(int first, int count) => new(first, count, Math.Max(1, count), Math.Max(1, count));

    /// <summary>Position of the key at <paramref name="index"/>.</summary>
    public int PositionAt(int index) => First + (index / Block * Stride) + (index % Block);

    /// <summary>How many of the keys have a position below <paramref name="position"/>.</summary>
    public int CountBelow(int position)
    {
        if (position <= First)
        {
            return 0;
        }

        int distance = position - First;
        long below = ((long)(distance / Stride) * Block) + Math.Min(Block, distance % Stride);
        return (int)Math.Min(Count, below);
    }
}
