using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Attention of one row tile over pages, one after the other, in fp32, with its own scratch memory. One worker uses it.</summary>
/// <remarks>
/// A row's arithmetic is the same whatever rows stand beside it: keys are taken in blocks at fixed places of the page, and a
/// hidden key has the weight 0 there, so that what hides it leaves no trace in the bits.
/// </remarks>
internal abstract unsafe class TileKernel : IDisposable
{
    /// <summary>Keys of a block.</summary>
    internal const int Block = 64;

    /// <summary>Largest |scale|·|query| whose products fit, where the kernel multiplies queries by the storage type's shift.</summary>
    internal abstract double QueryLimit { get; }

    /// <summary>Largest bound on |score| that this kernel is exact enough for.</summary>
    internal abstract double ScoreLimit { get; }

    /// <summary>Makes room on the managed heap for so many rows.</summary>
    internal virtual void Reserve(int rows)
    {
    }

    /// <summary>Takes the tile's queries.</summary>
    internal abstract void Load(RowTile tile);

    /// <summary>Forgets all keys.</summary>
    internal abstract void Reset();

    /// <summary>Adds the keys of a page, as far as the rows see them.</summary>
    internal abstract void Attend(RowTile tile, PageView page);

    /// <summary>Writes the state: output [rows, value_dim] normalised, max [rows], sum [rows].</summary>
    internal abstract void Finish(float* output, float* max, float* sum);

    public void Dispose()
    {
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Frees the scratch memory.</summary>
    protected abstract void Dispose(bool disposing);

    /// <summary>What is added to one row's scores over a block: biases, and -∞ for keys that the interval shows and other rules hide.</summary>
    protected static void FillBias(RowTile tile, PageView page, int row, int block, Span<float> bias)
    {
        ReadOnlySpan<int> positions = page.Positions.Slice(block, bias.Length);
        AttentionMask mask = tile.Problem.Mask;
        bias.Clear();
        mask.AddBias(tile.Batch, tile.Head[row], tile.Index[row], positions, bias);
        mask.Hide(tile.Batch, tile.Index[row], positions, bias);
    }
}
