using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>The worker over one kernel, one storage type, and double vectors of one width for the precise kernel.</summary>
internal sealed unsafe class TileWorker<TWidth, TVector, TElement>(TileKernel kernel, MemoryAccount account) : TileWorker
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

        bool anyFast = false;
        bool anyPrecise = false;
        for (int row = 0; row < _tile.Count; row++)
        {
            KeyInterval seen = _page.Indices[row];
            bool isFast = isClean ? IsFast(row, limits) : IsFast(row, _clean.Limits) && !_clean.IsSeen(_tile, _page, row);
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

    // Written so that NaN and ∞ are not fast.
    private bool IsFast(int row, PageLimits limits)
    {
        double magnitude = _tile.Magnitude[row];
        AttentionMask mask = _tile.Problem.Mask;
        double bias = mask.HasBias
            ? mask.LargestBias(_tile.Batch, _tile.Head[row], _tile.Index[row], _page.Span.FirstPosition, _page.Span.LastPosition)
            : 0;
        return magnitude <= kernel.QueryLimit
            && (magnitude * limits.LargestKeyNorm) + bias <= kernel.ScoreLimit
            && limits.LargestValue <= LargestFastValue;
    }
}
