using System;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu.Kernels;

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

/// <summary>The vector steps of the precise kernel: doubles, one row at a time, over the keys of a block that the row sees.</summary>
internal static unsafe class PreciseSteps<TWidth, TVector, TElement>
    where TWidth : struct, IDoubleWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    /// <summary>Rows of stored elements as rows of doubles, filled up with zeros.</summary>
    /// <param name="source">First element.</param>
    /// <param name="stride">Bytes from one row to the next.</param>
    /// <param name="count">Rows.</param>
    /// <param name="elements">Elements of a row.</param>
    /// <param name="target">[count, targetStride]</param>
    /// <param name="targetStride">A multiple of eight.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Widen(byte* source, nint stride, int count, int elements, double* target, int targetStride)
    {
        for (int row = 0; row < count; row++)
        {
            for (int i = 0; i < elements; i += Vector256<float>.Count)
            {
                (Vector256<double> lower, Vector256<double> upper) = Vector256.Widen(TElement.LoadExact(source + (i * TElement.Size)));
                lower.Store(target + i);
                upper.Store(target + i + Vector256<double>.Count);
            }

            for (int i = elements; i < targetStride; i++)
            {
                target[i] = 0;
            }

            source += stride;
            target += targetStride;
        }
    }

    /// <summary>Dot products with the seen keys, eight at a time; scores has room for seven more than there are.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Dots(double* query, double* keys, int stride, ReadOnlySpan<int> seen, int count, Span<double> scores)
    {
        double** k = stackalloc double*[8];
        for (int n = 0; n < count; n += 8)
        {
            for (int i = 0; i < 8; i++)
            {
                k[i] = keys + ((long)seen[Math.Min(n + i, count - 1)] * stride);
            }

            double* k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3], k4 = k[4], k5 = k[5], k6 = k[6], k7 = k[7];
            TVector a0 = TWidth.Create(0), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
            for (int i = 0; i < stride; i += TWidth.Count)
            {
                TVector q = TWidth.Load(query + i);
                a0 = TWidth.MultiplyAdd(TWidth.Load(k0 + i), q, a0);
                a1 = TWidth.MultiplyAdd(TWidth.Load(k1 + i), q, a1);
                a2 = TWidth.MultiplyAdd(TWidth.Load(k2 + i), q, a2);
                a3 = TWidth.MultiplyAdd(TWidth.Load(k3 + i), q, a3);
                a4 = TWidth.MultiplyAdd(TWidth.Load(k4 + i), q, a4);
                a5 = TWidth.MultiplyAdd(TWidth.Load(k5 + i), q, a5);
                a6 = TWidth.MultiplyAdd(TWidth.Load(k6 + i), q, a6);
                a7 = TWidth.MultiplyAdd(TWidth.Load(k7 + i), q, a7);
            }

            TWidth.Sums(a0, a1, a2, a3).StoreUnsafe(ref scores[n]);
            TWidth.Sums(a4, a5, a6, a7).StoreUnsafe(ref scores[n + 4]);
        }
    }

    /// <summary>The largest of the scores and <paramref name="before"/>, rounded to fp32 as a partial holds it; NaN if one is. Fills up the last vector with -∞.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static double Largest(Span<double> scores, int count, double before)
    {
        scores.Slice(count, -count & (Vector256<double>.Count - 1)).Fill(double.NegativeInfinity);
        var largest = Vector256.Create(before);
        for (int n = 0; n < count; n += Vector256<double>.Count)
        {
            largest = Vector256.Max(largest, Vector256.LoadUnsafe(ref scores[n]));
        }

        return (float)Math.Max(Math.Max(largest[0], largest[1]), Math.Max(largest[2], largest[3]));
    }

    /// <summary>score := e^(score - top); returns their sum.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static double Exponentiate(Span<double> scores, int count, double top)
    {
        Vector256<double> sum = Vector256<double>.Zero;
        for (int n = 0; n < count; n += Vector256<double>.Count)
        {
            Vector256<double> weight = DoubleExp.Exp(Vector256.LoadUnsafe(ref scores[n]) - Vector256.Create(top));
            weight.StoreUnsafe(ref scores[n]);
            sum += weight;
        }

        return Vector256.Sum(sum);
    }

    /// <summary>output := output·correction + Σ weight·value; the stride of values and output is a multiple of eight.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void AddValues(
        ReadOnlySpan<double> weights, ReadOnlySpan<int> seen, int count, double* values, int stride, double* output, double correction)
    {
        TVector by = TWidth.Create(correction);
        int at = 0;
        for (; at + (8 * TWidth.Count) <= stride; at += 8 * TWidth.Count)
        {
            AddEight(weights, seen, count, values + at, stride, output + at, by);
        }

        for (; at < stride; at += TWidth.Count)
        {
            TVector sum = TWidth.Multiply(TWidth.Load(output + at), by);
            for (int n = 0; n < count; n++)
            {
                sum = TWidth.MultiplyAdd(TWidth.Create(weights[n]), TWidth.Load(values + ((long)seen[n] * stride) + at), sum);
            }

            TWidth.Store(sum, output + at);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddEight(
        ReadOnlySpan<double> weights, ReadOnlySpan<int> seen, int count, double* values, int stride, double* output, TVector by)
    {
        TVector a0 = TWidth.Multiply(TWidth.Load(output), by);
        TVector a1 = TWidth.Multiply(TWidth.Load(output + TWidth.Count), by);
        TVector a2 = TWidth.Multiply(TWidth.Load(output + (2 * TWidth.Count)), by);
        TVector a3 = TWidth.Multiply(TWidth.Load(output + (3 * TWidth.Count)), by);
        TVector a4 = TWidth.Multiply(TWidth.Load(output + (4 * TWidth.Count)), by);
        TVector a5 = TWidth.Multiply(TWidth.Load(output + (5 * TWidth.Count)), by);
        TVector a6 = TWidth.Multiply(TWidth.Load(output + (6 * TWidth.Count)), by);
        TVector a7 = TWidth.Multiply(TWidth.Load(output + (7 * TWidth.Count)), by);
        for (int n = 0; n < count; n++)
        {
            double* value = values + ((long)seen[n] * stride);
            TVector weight = TWidth.Create(weights[n]);
            a0 = TWidth.MultiplyAdd(weight, TWidth.Load(value), a0);
            a1 = TWidth.MultiplyAdd(weight, TWidth.Load(value + TWidth.Count), a1);
            a2 = TWidth.MultiplyAdd(weight, TWidth.Load(value + (2 * TWidth.Count)), a2);
            a3 = TWidth.MultiplyAdd(weight, TWidth.Load(value + (3 * TWidth.Count)), a3);
            a4 = TWidth.MultiplyAdd(weight, TWidth.Load(value + (4 * TWidth.Count)), a4);
            a5 = TWidth.MultiplyAdd(weight, TWidth.Load(value + (5 * TWidth.Count)), a5);
            a6 = TWidth.MultiplyAdd(weight, TWidth.Load(value + (6 * TWidth.Count)), a6);
            a7 = TWidth.MultiplyAdd(weight, TWidth.Load(value + (7 * TWidth.Count)), a7);
        }

        TWidth.Store(a0, output);
        TWidth.Store(a1, output + TWidth.Count);
        TWidth.Store(a2, output + (2 * TWidth.Count));
        TWidth.Store(a3, output + (3 * TWidth.Count));
        TWidth.Store(a4, output + (4 * TWidth.Count));
        TWidth.Store(a5, output + (5 * TWidth.Count));
        TWidth.Store(a6, output + (6 * TWidth.Count));
        TWidth.Store(a7, output + (7 * TWidth.Count));
    }
}
