using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Attention in double precision for rows and pages whose numbers are too large for fp32, or not finite.</summary>
/// <remarks>
/// Products, scores, differences of exponents and sums are doubles; what leaves is rounded once, and a finite output that
/// fp32 cannot hold becomes the largest it can. A hidden key is not computed with, so its NaN or ∞ stays where it is. A score of NaN
/// makes the row NaN; a score of +∞ makes its output NaN and its maximum +∞.
/// </remarks>
internal sealed unsafe class PreciseKernel<TWidth, TVector, TElement>(MemoryAccount account) : IDisposable
    where TWidth : struct, IDoubleWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    // Keys and values of a block, as doubles, stay in the first-level cache for all rows.
    private const int Block = 16;

    private readonly Scratch _queries = new(account);
    private readonly Scratch _outputs = new(account);
    private readonly Scratch _keys = new(account);
    private readonly Scratch _values = new(account);
    private readonly int[] _seen = new int[Block];
    private readonly double[] _scores = new double[Block + 8];
    private double[] _max = [];
    private double[] _sum = [];
    private int _keyStride;
    private int _valueStride;
    private bool _isLoaded;
    private bool _isUsed;

    /// <summary>Makes room on the managed heap for so many rows.</summary>
    internal void Reserve(int rows) => (_max, _sum) = (new double[rows], new double[rows]);

    /// <summary>Takes a new tile; nothing is done before a page needs it.</summary>
    internal void Load() => _isLoaded = false;

    /// <summary>Forgets all keys.</summary>
    internal void Reset() => _isUsed = false;

    /// <summary>Adds the keys of a page for the rows whose interval in <paramref name="indices"/> is not empty.</summary>
    internal void Attend(RowTile tile, PageView page, ReadOnlySpan<KeyInterval> indices)
    {
        Prepare(tile);
        AttentionShape shape = tile.Problem.Shape;
        for (int block = 0; block < page.Span.Count; block += Block)
        {
            int count = Math.Min(Block, page.Span.Count - block);
            bool isWidened = false;
            for (int row = 0; row < tile.Count; row++)
            {
                int seen = FindSeen(tile, page, row, indices[row], block, count);
                if (seen > 0 && !isWidened)
                {
                    PreciseSteps<TWidth, TVector, TElement>.Widen(
                        page.Keys + (block * page.KeyStride), page.KeyStride, count, shape.HeadDim, _keys.Doubles((long)Block * _keyStride), _keyStride);
                    PreciseSteps<TWidth, TVector, TElement>.Widen(
                        page.Values + (block * page.ValueStride), page.ValueStride, count, shape.ValueDim, _values.Doubles((long)Block * _valueStride), _valueStride);
                    isWidened = true;
                }

                if (seen > 0)
                {
                    Score(tile, page, row, block, seen);
                    Accumulate(row, seen);
                }
            }
        }
    }

    /// <summary>Folds the state into another one over the same rows, if there is any.</summary>
    internal void FoldInto(RowTile tile, float* output, float* max, float* sum)
    {
        if (!_isUsed)
        {
            return;
        }

        int valueDim = tile.Problem.Shape.ValueDim;
        Span<float> row = stackalloc float[valueDim];
        double* outputs = _outputs.Doubles(0);
        for (int i = 0; i < tile.Count; i++)
        {
            for (int element = 0; element < valueDim; element++)
            {
                row[element] = Saturate(outputs[(i * _valueStride) + element] / _sum[i] * tile.ValueScale);
            }

            PartialMerge.Fold(
                new Span<float>(output + ((long)i * valueDim), valueDim), new Span<float>(max + i, 1), new Span<float>(sum + i, 1),
                row, [(float)_max[i]], [(float)_sum[i]], valueDim);
        }
    }

    public void Dispose()
    {
        _queries.Dispose();
        _outputs.Dispose();
        _keys.Dispose();
        _values.Dispose();
    }

    private static float Saturate(double value) =>
        double.IsFinite(value) ? (float)Math.Clamp(value, -float.MaxValue, float.MaxValue) : (float)value;

    private void Prepare(RowTile tile)
    {
        AttentionShape shape = tile.Problem.Shape;
        (_keyStride, _valueStride) = ((shape.HeadDim + 7) / 8 * 8, (shape.ValueDim + 7) / 8 * 8);
        if (!_isLoaded)
        {
            double* target = _queries.Doubles((long)tile.Count * _keyStride);
            float* source = tile.Queries;
            for (int row = 0; row < tile.Count; row++, source += shape.HeadDim, target += _keyStride)
            {
                for (int i = 0; i < _keyStride; i++)
                {
                    target[i] = i < shape.HeadDim ? source[i] : 0;
                }
            }

            _isLoaded = true;
        }

        if (!_isUsed)
        {
            new Span<double>(_outputs.Doubles((long)tile.Count * _valueStride), tile.Count * _valueStride).Clear();
            _max.AsSpan().Fill(double.NegativeInfinity);
            _sum.AsSpan().Clear();
            _isUsed = true;
        }
    }

    // The keys of the block that the row sees, by all rules.
    private int FindSeen(RowTile tile, PageView page, int row, KeyInterval indices, int block, int count)
    {
        int seen = 0;
        bool hasRules = tile.Problem.Mask.HasKeyRules;
        int end = Math.Min(indices.End - block, count);
        for (int key = Math.Max(indices.First - block, 0); key < end; key++)
        {
            if (!hasRules || tile.Problem.Mask.KeepsInside(tile.Batch, tile.Index[row], page.Positions[block + key]))
            {
                _seen[seen++] = key;
            }
        }

        return seen;
    }

    private void Score(RowTile tile, PageView page, int row, int block, int seen)
    {
        double scale = tile.ScoreScale;
        double cap = tile.Problem.Options.Softcap;
        AttentionMask mask = tile.Problem.Mask;
        PreciseSteps<TWidth, TVector, TElement>.Dots(_queries.Doubles(0) + ((long)row * _keyStride), _keys.Doubles(0), _keyStride, _seen, seen, _scores);
        for (int n = 0; n < seen; n++)
        {
            double score = scale * _scores[n];
            if (cap > 0)
            {
                score = cap * Math.Tanh(score / cap);
            }

            if (mask.HasBias)
            {
                score += mask.Bias(tile.Batch, tile.Head[row], tile.Index[row], page.Positions[block + _seen[n]]);
            }

            _scores[n] = Math.Abs(score) < ScoreRange.Untouched ? score : ScoreRange.Settle(score);
        }
    }

    private void Accumulate(int row, int seen)
    {
        double before = _max[row];
        double top = PreciseSteps<TWidth, TVector, TElement>.Largest(_scores, seen, before);
        if (double.IsNegativeInfinity(top))
        {
            return;
        }

        double correction = top == before ? 1 : Math.Exp(before - top);
        double sum = PreciseSteps<TWidth, TVector, TElement>.Exponentiate(_scores, seen, top);
        _max[row] = top;
        _sum[row] = double.IsPositiveInfinity(top) ? 1 : (_sum[row] * correction) + sum;
        double* output = _outputs.Doubles(0) + ((long)row * _valueStride);
        PreciseSteps<TWidth, TVector, TElement>.AddValues(_scores, _seen, seen, _values.Doubles(0), _valueStride, output, correction);
    }
}
