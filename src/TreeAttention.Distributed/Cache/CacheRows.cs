using System;
using System.Linq;
using System.Runtime.CompilerServices;

namespace TreeAttention.Distributed.Cache;

/// <summary>The rows of a cache: how many tokens each layer has of each, and what is done to whole rows, the same on every rank.</summary>
/// <param name="options">Sizes.</param>
/// <param name="pages">The page table.</param>
/// <param name="prepare">Makes a slot ready for a row: the rank, the slot whose contents it takes over (-1 for none), the slot.</param>
internal sealed class CacheRows(CacheOptions options, CachePages pages, Action<int, int, int> prepare)
{
    private readonly int[] _lengths = new int[options.Layers * options.Rows];
    private readonly int[] _starts = new int[options.Rows]; // rotary position of the first token: what left padding takes
    private readonly int[] _ends = new int[options.Rows];   // scratch

    /// <summary>Every row, in order.</summary>
    public int[] All { get; } = [.. Enumerable.Range(0, options.Rows)];

    /// <summary>Tokens that were taken in so far, over all layers and rows; those that went again count too.</summary>
    public long Taken { get; private set; }

    /// <summary>Throws unless there is such a layer.</summary>
    public void RequireLayer(int layer)
    {
        if ((uint)layer >= (uint)options.Layers)
        {
            throw new ArgumentOutOfRangeException(nameof(layer), layer, $"The cache has the layers 0 to {options.Layers - 1}.");
        }
    }

    /// <summary>Throws unless there is such a row.</summary>
    public void RequireRow(int row, [CallerArgumentExpression(nameof(row))] string? parameter = null)
    {
        if ((uint)row >= (uint)options.Rows)
        {
            throw new ArgumentOutOfRangeException(parameter, row, $"The cache has the rows 0 to {options.Rows - 1}.");
        }
    }

    /// <summary>Throws unless the rows of a call are different rows of the cache. Allocates nothing.</summary>
    /// <exception cref="ShapeMismatchException">They are not.</exception>
    public void RequireDifferent(ReadOnlySpan<int> rows)
    {
        for (int i = 0; i < rows.Length; i++)
        {
            if ((uint)rows[i] >= (uint)options.Rows || rows[..i].Contains(rows[i]))
            {
                throw new ShapeMismatchException(
                    $"The rows {string.Join(',', rows.ToArray())} of a call must be different rows of the cache, which has 0 to {options.Rows - 1}.", nameof(rows));
            }
        }
    }

    /// <summary>Tokens of a row that a layer holds.</summary>
    public int LengthOf(int layer, int row) => _lengths[(layer * options.Rows) + row];

    /// <summary>Rotary position of a row's first token.</summary>
    public int PaddingOf(int row) => _starts[row];

    /// <inheritdoc cref="ShardedKvCache.PadLeft"/>
    public void PadLeft(int row, int padding)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(padding);
        if (pages.LengthOf(row) > 0)
        {
            throw new InvalidOperationException($"Row {row} has {pages.LengthOf(row)} tokens: left padding is said before the first.");
        }

        _starts[row] = padding;
    }

    /// <summary>The same number of tokens has room behind those that a layer has of each row.</summary>
    public bool HasRoom(int layer, ReadOnlySpan<int> rows, int tokens)
    {
        for (int i = 0; i < rows.Length; i++)
        {
            long end = (long)LengthOf(layer, rows[i]) + tokens;
            if (end > options.MaxLength)
            {
                return false;
            }

            _ends[i] = (int)end;
        }

        return pages.HasRoom(rows, _ends.AsSpan(0, rows.Length));
    }

    /// <summary>Finds room for the same number of tokens behind those that a layer has of each row, or changes nothing.</summary>
    /// <exception cref="FaultException">The cache is full (71), on every rank alike.</exception>
    public void MakeRoom(int layer, ReadOnlySpan<int> rows, int tokens)
    {
        for (int i = 0; i < rows.Length; i++)
        {
            _ends[i] = EndOf(layer, rows[i], tokens);
        }

        pages.Extend(rows, _ends.AsSpan(0, rows.Length), prepare);
    }

    /// <summary>The same for as many tokens of each row as are given for it.</summary>
    /// <exception cref="FaultException">The cache is full (71), on every rank alike.</exception>
    public void MakeRoom(int layer, ReadOnlySpan<int> rows, ReadOnlySpan<int> tokens)
    {
        for (int i = 0; i < rows.Length; i++)
        {
            _ends[i] = EndOf(layer, rows[i], tokens[i]);
        }

        pages.Extend(rows, _ends.AsSpan(0, rows.Length), prepare);
    }

    /// <summary>Says that a layer has so many tokens more of a row.</summary>
    public void Advance(int layer, int row, int tokens)
    {
        _lengths[(layer * options.Rows) + row] += tokens;
        Taken += tokens;
    }

    /// <summary>A layer has so many tokens of a row again, and pages that were found for more are given back.</summary>
    public void Rewind(int layer, int row, int length)
    {
        _lengths[(layer * options.Rows) + row] = length;
        int longest = 0;
        for (int other = 0; other < options.Layers; other++)
        {
            longest = Math.Max(longest, LengthOf(other, row));
        }

        pages.Truncate(row, longest);
    }

    /// <inheritdoc cref="ShardedKvCache.Truncate"/>
    public void Truncate(int row, int length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        pages.Truncate(row, length);
        for (int layer = 0; layer < options.Layers; layer++)
        {
            ref int held = ref _lengths[(layer * options.Rows) + row];
            held = Math.Min(held, length);
        }
    }

    /// <inheritdoc cref="ShardedKvCache.Keep"/>
    public void Keep(int row, int first, ReadOnlySpan<int> kept, TokenMover mover, Action<Exception> lose)
    {
        int length = LengthOf(0, row);
        for (int layer = 1; layer < options.Layers; layer++)
        {
            length = Math.Min(length, LengthOf(layer, row));
        }

        for (int i = 0; i < kept.Length; i++)
        {
            if (first < 0 || kept[i] < 0 || kept[i] >= length - first || (i > 0 && kept[i] <= kept[i - 1]))
            {
                throw new ShapeMismatchException(
                    $"Row {row} keeps offsets {string.Join(',', kept.ToArray())} from {first} on, but they must ascend and lie inside its {length} tokens.");
            }
        }

        pages.Detach(row, first, first + kept.Length, prepare);
        try
        {
            for (int i = 0; i < kept.Length; i++)
            {
                if (kept[i] != i)
                {
                    mover.Move(row, first + kept[i], first + i);
                }
            }
        }
        catch (Exception error)
        {
            lose(error); // some tokens lie where others did
            throw;
        }

        Truncate(row, first + kept.Length);
    }

    /// <inheritdoc cref="ShardedKvCache.Release"/>
    public void Release(int row)
    {
        Truncate(row, 0);
        _starts[row] = 0;
    }

    /// <inheritdoc cref="ShardedKvCache.Fork"/>
    public void Fork(int from, int to, int length)
    {
        for (int layer = 0; layer < options.Layers; layer++)
        {
            if (from == to || length < 0 || length > LengthOf(layer, from))
            {
                throw new InvalidOperationException(
                    $"Row {to} cannot begin with {length} tokens of row {from}, which has {LengthOf(layer, from)} in layer {layer}.");
            }
        }

        Release(to);
        pages.Fork(from, to, length);
        _starts[to] = _starts[from];
        for (int layer = 0; layer < options.Layers; layer++)
        {
            _lengths[(layer * options.Rows) + to] = length;
        }
    }

    private int EndOf(int layer, int row, int tokens)
    {
        long end = (long)LengthOf(layer, row) + tokens;
        return end <= options.MaxLength ? (int)end : throw new FaultException(
            FaultCode.OutOfMemory,
            $"The cache is full: row {row} has {LengthOf(layer, row)} tokens and cannot take {tokens} more, for it ends at "
            + $"{options.MaxLength}. Nothing was stored. Truncate the row, or make the cache longer.")
        { IsAgreed = true };
    }
}
