using System;
using System.Runtime.Intrinsics;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Attention in double precision for rows and pages whose numbers are too large for fp32, or not finite.</summary>
/// <remarks>
/// Products, scores, differences of exponents and sums are doubles; what leaves is rounded once, and a finite output that
/// fp32 cannot hold becomes the largest it can. A hidden key is not computed with, so its NaN or ∞ stays where it is. A score of NaN
/// makes the row NaN; a score of +∞ makes its output NaN and its maximum +∞.
/// </remarks>
internal sealed unsafe class PreciseKernel<TElement>(MemoryAccount account) : IDisposable
    where TElement : struct, IStoredElement
{
    private const int Block = TileKernel.Block;

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
                    Widen(page.Keys + (block * page.KeyStride), page.KeyStride, count, shape.HeadDim, _keyStride, _keys);
                    Widen(page.Values + (block * page.ValueStride), page.ValueStride, count, shape.ValueDim, _valueStride, _values);
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
                row[element] = Saturate(outputs[(i * _valueStride) + element] / _sum[i]);
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

    private static void Widen(byte* source, nint stride, int count, int elements, int targetStride, Scratch scratch)
    {
        double* target = scratch.Doubles((long)Block * targetStride);
        for (int row = 0; row < count; row++)
        {
            for (int i = 0; i < elements; i++)
            {
                target[i] = TElement.ToDouble(source + (i * TElement.Size));
            }

            new Span<double>(target + elements, targetStride - elements).Clear();
            source += stride;
            target += targetStride;
        }
    }

    private void Prepare(RowTile tile)
    {
        AttentionShape shape = tile.Problem.Shape;
        (_keyStride, _valueStride) = ((shape.HeadDim + 3) / 4 * 4, (shape.ValueDim + 3) / 4 * 4);
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
        double scale = tile.Problem.Scale;
        double cap = tile.Problem.Options.Softcap;
        AttentionMask mask = tile.Problem.Mask;
        double* query = _queries.Doubles(0) + ((long)row * _keyStride);
        double* keys = _keys.Doubles(0);
        for (int n = 0; n < seen; n++)
        {
            double score = scale * Dot(query, keys + (_seen[n] * _keyStride), _keyStride);
            if (cap > 0)
            {
                score = cap * Math.Tanh(score / cap);
            }

            if (mask.HasBias)
            {
                score += mask.Bias(tile.Batch, tile.Head[row], tile.Index[row], page.Positions[block + _seen[n]]);
            }

            _scores[n] = ScoreRange.Settle(score);
        }
    }

    private static double Dot(double* left, double* right, int count)
    {
        Vector256<double> even = Vector256<double>.Zero;
        Vector256<double> odd = even;
        int i = 0;
        for (; i + 8 <= count; i += 8)
        {
            even = Vector256.FusedMultiplyAdd(Vector256.Load(left + i), Vector256.Load(right + i), even);
            odd = Vector256.FusedMultiplyAdd(Vector256.Load(left + i + 4), Vector256.Load(right + i + 4), odd);
        }

        if (i < count)
        {
            even = Vector256.FusedMultiplyAdd(Vector256.Load(left + i), Vector256.Load(right + i), even);
        }

        return Vector256.Sum(even + odd);
    }

    private void Accumulate(int row, int seen)
    {
        Span<double> scores = _scores.AsSpan(0, seen);
        double before = _max[row];
        double top = before;
        foreach (double score in scores)
        {
            top = Math.Max(top, (float)score); // NaN wins
        }

        if (double.IsNegativeInfinity(top))
        {
            return;
        }

        double correction = top == before ? 1 : Math.Exp(before - top);
        double sum = 0;
        for (int n = 0; n < seen; n++)
        {
            scores[n] = Math.Exp(scores[n] - top);
            sum += scores[n];
        }

        _max[row] = top;
        _sum[row] = double.IsPositiveInfinity(top) ? 1 : (_sum[row] * correction) + sum;
        AddValues(_outputs.Doubles(0) + ((long)row * _valueStride), seen, correction);
    }

    private void AddValues(double* output, int seen, double correction)
    {
        double* values = _values.Doubles(0);
        for (int i = 0; i < _valueStride; i += 4)
        {
            Vector256<double> sum = Vector256<double>.Zero;
            for (int n = 0; n < seen; n++)
            {
                sum = Vector256.FusedMultiplyAdd(
                    Vector256.Create(_scores[n]), Vector256.Load(values + (_seen[n] * _valueStride) + i), sum);
            }

            Vector256.FusedMultiplyAdd(Vector256.Load(output + i), Vector256.Create(correction), sum).Store(output + i);
        }
    }
}
