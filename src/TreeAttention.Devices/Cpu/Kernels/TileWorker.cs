using System;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu.Kernels;

/// <summary>One worker's attention over pages for one row tile at a time: sends each row of each page to the kernel that is exact enough.</summary>
internal abstract unsafe class TileWorker : IDisposable
{
    /// <summary>Makes room for tiles of so many rows, so that later calls allocate nothing on the managed heap.</summary>
    internal abstract void Reserve(int rows);

    /// <summary>Takes a tile of query rows, for pages of shards with the scales of <paramref name="plan"/>.</summary>
    internal abstract void Load(AttentionProblem problem, QueryBlock queries, ShardPlan plan, int batch, int kvHead, int first, int count);

    /// <summary>Attention of the tile over pages <paramref name="first"/> to <paramref name="end"/> - 1 of the plan, from scratch.</summary>
    /// <param name="shard">The shard.</param>
    /// <param name="first">Index of the first page in the plan.</param>
    /// <param name="end">Index after the last page.</param>
    /// <param name="into">The tile's rows; what they held is replaced.</param>
    internal abstract void Attend(KeyValueShard shard, int first, int end, StateRows into);

    /// <inheritdoc/>
    public abstract void Dispose();
}

/// <summary>The worker over one kernel, one storage type, and double vectors of one width for the precise kernel.</summary>
/// <param name="kernel">The fast kernel.</param>
/// <param name="isCanonical">What is exact enough is decided by the keys that a row sees, not by those of its page.</param>
/// <param name="account">Counts the scratch memory.</param>
internal sealed unsafe class TileWorker<TWidth, TVector, TElement>(TileKernel kernel, bool isCanonical, MemoryAccount account) : TileWorker
    where TWidth : struct, IDoubleWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    // Sums of such values over 2^28 keys stay inside fp32's range.
    private const float LargestFastValue = 1e30f;

    // Running sums are closed and merged after so many pages: rounding errors add up over 16,384 keys, not over the context.
    private const int ChapterPages = 32;

    private readonly Scratch _chapter = new(account);
    private readonly RowTile _tile = new();
    private readonly PageView _page = new();
    private readonly PreciseKernel<TWidth, TVector, TElement> _precise = new(account);
    private readonly CleanPage<TElement> _clean = new(account);
    private KeyInterval[] _preciseIndices = [];

    internal override void Reserve(int rows)
    {
        if (_preciseIndices.Length < rows)
        {
            _preciseIndices = new KeyInterval[rows];
            _tile.Reserve(rows);
            _page.Reserve(rows);
            kernel.Reserve(rows);
            _precise.Reserve(rows);
        }
    }

    internal override void Load(AttentionProblem problem, QueryBlock queries, ShardPlan plan, int batch, int kvHead, int first, int count)
    {
        Reserve(count);
        _tile.Take(problem, queries, plan, batch, kvHead, first, count);
        kernel.Load(_tile);
        _precise.Load();
    }

    internal override void Attend(KeyValueShard shard, int first, int end, StateRows into)
    {
        AttendChapter(shard, first, Math.Min(first + ChapterPages, end), into);
        if (first + ChapterPages < end)
        {
            var chapter = StateRows.At(_chapter.Floats(PartialAttention.FloatsFor(into.Rows, into.ValueDim)), into.Rows, into.ValueDim);
            for (int page = first + ChapterPages; page < end; page += ChapterPages)
            {
                AttendChapter(shard, page, Math.Min(page + ChapterPages, end), chapter);
                into.FoldFrom(chapter);
            }
        }
    }

    public override void Dispose()
    {
        kernel.Dispose();
        _precise.Dispose();
        _chapter.Dispose();
        _clean.Dispose();
    }

    private void AttendChapter(KeyValueShard shard, int first, int end, StateRows into)
    {
        kernel.Reset();
        _precise.Reset();
        for (int page = first; page < end; page++)
        {
            if (_page.Take(shard.Plan.Pages[page].Span, _tile))
            {
                Locate(shard, page, end);
                AttendPage(shard.LimitsOf(shard.Plan.Pages[page].Slot, _tile.KvHead));
            }
        }

        kernel.Finish((float*)into.Output, (float*)into.Max, (float*)into.Sum);
        _precise.FoldInto(_tile, (float*)into.Output, (float*)into.Max, (float*)into.Sum);
    }

    private void Locate(KeyValueShard shard, int page, int end)
    {
        int next = page + 1 < end ? page + 1 : page;
        _page.Keys = KeysOf(shard, page);
        _page.Values = ValuesOf(shard, page);
        _page.NextKeys = KeysOf(shard, next);
        _page.NextValues = ValuesOf(shard, next);
        _page.KeyStride = (nint)shard.Plan.Shape.HeadDim * TElement.Size;
        _page.ValueStride = (nint)shard.Plan.ValueStride * TElement.Size;
    }

    private byte* KeysOf(KeyValueShard shard, int page)
    {
        KeyPage place = shard.Plan.Pages[page];
        long keys = place.KeyOffset + ((long)_tile.KvHead * place.Capacity * shard.Plan.Shape.HeadDim);
        return (byte*)shard.Contents.Address + (keys * TElement.Size);
    }

    private byte* ValuesOf(KeyValueShard shard, int page)
    {
        KeyPage place = shard.Plan.Pages[page];
        long values = place.ValueOffset + ((long)_tile.KvHead * place.Capacity * shard.Plan.ValueStride);
        return (byte*)shard.Contents.Address + (values * TElement.Size);
    }

    private void AttendPage(PageLimits limits)
    {
        bool isClean = float.IsFinite(limits.LargestKeyNorm) && float.IsFinite(limits.LargestValue);
        if (!isClean)
        {
            _clean.Examine(_page, _tile);
        }

        bool isExamined = !isClean;
        bool anyFast = false;
        bool anyPrecise = false;
        for (int row = 0; row < _tile.Count; row++)
        {
            KeyInterval seen = _page.Indices[row];
            bool isFast = isCanonical ? seen.IsEmpty || IsFast(row, limits) || IsFastBySeenKeys(row, ref isExamined)
                : isClean ? IsFast(row, limits)
                : IsFast(row, _clean.Limits) && !_clean.IsSeen(_tile, _page, row);
            bool isPrecise = !seen.IsEmpty && !isFast;
            _preciseIndices[row] = isPrecise ? seen : default;
            _page.Indices[row] = isPrecise ? default : seen;
            anyPrecise |= isPrecise;
            anyFast |= !isPrecise && !seen.IsEmpty;
        }

        if (anyPrecise)
        {
            _precise.Attend(_tile, _page, _preciseIndices);
        }

        if (anyFast && (!anyPrecise || _page.FindHull(_tile.Count)))
        {
            if (!isClean)
            {
                _clean.Enter(_page);
            }

            kernel.Attend(_tile, _page);
        }
    }

    // Limits of the page bound those of the keys that a row sees: what they let pass, these do. So neighbours, keys that are gone and
    // what lies past a row cost time at most, and change no bit.
    private bool IsFastBySeenKeys(int row, ref bool isExamined)
    {
        if (!isExamined)
        {
            _clean.Examine(_page, _tile);
            isExamined = true;
        }

        (double keyNorm, double value, double bias) = _clean.SeenBy(_tile, _page, row);
        return IsFast(row, keyNorm, value, bias);
    }

    private bool IsFast(int row, PageLimits limits)
    {
        AttentionMask mask = _tile.Problem.Mask;
        double bias = mask.HasBias
            ? mask.LargestBias(_tile.Batch, _tile.Head[row], _tile.Index[row], _page.Span.FirstPosition, _page.Span.LastPosition)
            : 0;
        return IsFast(row, limits.LargestKeyNorm, limits.LargestValue, bias);
    }

    // Written so that NaN and ∞ are not fast.
    private bool IsFast(int row, double keyNorm, double value, double bias)
    {
        double magnitude = _tile.Magnitude[row];
        return magnitude <= kernel.QueryLimit
            && (magnitude * keyNorm) + bias <= kernel.ScoreLimit
            && value <= LargestFastValue;
    }
}

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

    /// <summary>Largest |scale|·|query| whose elements still fit when they are multiplied by a storage type's shift.</summary>
    protected static double ShiftedQueryLimit(float shift) => shift == 1f ? double.PositiveInfinity : 16384;

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
