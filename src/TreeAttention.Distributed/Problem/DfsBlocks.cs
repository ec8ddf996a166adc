using System;
using System.Numerics.Tensors;

namespace TreeAttention.Distributed;

/// <summary>Blocks of neighbouring keys in depth-first order, of which those that a query cannot see are skipped whole.</summary>
internal sealed class DfsBlocks
{
    /// <summary>Keys of a block.</summary>
    public const int Keys = 64;

    private readonly int _blocks; // of a batch row

    /// <summary>Blocks of all batch rows.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="ends">[batch, key_len] the last descendant of each key's node.</param>
    public DfsBlocks(AttentionShape shape, int[] ends)
    {
        _blocks = (shape.KeyLength + Keys - 1) / Keys;
        Peaks = new int[shape.Batch * _blocks];
        for (int i = 0; i < Peaks.Length; i++)
        {
            int first = i % _blocks * Keys;
            int count = Math.Min(Keys, shape.KeyLength - first);
            Peaks[i] = TensorPrimitives.Max<int>(ends.AsSpan((i / _blocks * shape.KeyLength) + first, count));
        }
    }

    /// <summary>[batch, blocks] the largest end of each block.</summary>
    public int[] Peaks { get; }

    /// <summary>The interval without the blocks at either end of which a query sees no key.</summary>
    /// <param name="batch">The batch row.</param>
    /// <param name="start">The query's place in depth-first order.</param>
    /// <param name="keys">The interval.</param>
    public KeyInterval WithoutHidden(int batch, int start, KeyInterval keys)
    {
        if (keys.IsEmpty)
        {
            return keys;
        }

        ReadOnlySpan<int> peaks = Peaks.AsSpan(batch * _blocks, _blocks);
        int first = keys.First / Keys;
        int last = (keys.End - 1) / Keys;
        while (first <= last && start > peaks[first])
        {
            first++;
        }

        while (last >= first && start > peaks[last])
        {
            last--;
        }

        return new KeyInterval(Math.Max(keys.First, first * Keys), Math.Min(keys.End, (last + 1) * Keys));
    }
}
