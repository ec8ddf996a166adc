using System;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu.Kernels;

/// <summary>Attention of a few query rows: bound by reading keys and values, so rows share each load of them.</summary>
/// <remarks>
/// Vectors run along the head dimension. For each block of keys: scores, softmax, values; while keys are read the block's
/// values are prefetched, and while values are read the next block's keys.
/// </remarks>
/// <param name="isCanonical">Sums follow <see cref="CanonicalOrder{TWidth, TVector}"/>.</param>
/// <param name="account">Counts the scratch memory.</param>
internal sealed unsafe class RowKernel<TWidth, TVector, TElement>(bool isCanonical, MemoryAccount account) : TileKernel
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    private readonly Scratch _queries = new(account);
    private readonly Scratch _outputs = new(account);
    private readonly Scratch _weights = new(account);
    private int _rows;
    private int _padded;
    private int _queryStride;
    private int _outputStride;
    private int _valueDim;
    private float _valueScale;
    private float[] _max = [];
    private float[] _correction = [];
    private double[] _sum = [];

    internal override double QueryLimit => ShiftedQueryLimit(TElement.Shift);

    internal override double ScoreLimit { get; } = StorageType.Of(TElement.Type).ScoreLimit;

    internal override void Reserve(int rows)
    {
        _max = new float[rows + 1];
        _correction = new float[rows + 1];
        _sum = new double[rows + 1];
    }

    internal override void Load(RowTile tile)
    {
        int headDim = tile.Problem.Shape.HeadDim;
        _rows = tile.Count;

        // Tiles of four rows and single rows; three are padded to four.
        _padded = _rows % 4 == 3 ? _rows + 1 : _rows;
        _queryStride = RoundUp(headDim);
        _valueDim = tile.Problem.Shape.ValueDim;
        _outputStride = RoundUp(_valueDim);
        float* queries = _queries.Floats((long)_padded * _queryStride);
        new Span<float>(queries, _padded * _queryStride).Clear();
        _valueScale = tile.ValueScale;
        float factor = (float)tile.ScoreScale;
        for (int row = 0; row < _rows; row++)
        {
            for (int i = 0; i < headDim; i++)
            {
                queries[(row * _queryStride) + i] = tile.Queries[(row * headDim) + i] * factor * TElement.Shift;
            }
        }

        _ = _outputs.Floats((long)_padded * _outputStride);
        _ = _weights.Floats((long)_padded * Block);
    }

    internal override void Reset()
    {
        new Span<float>(_outputs.Bytes(0), _padded * _outputStride).Clear();
        _max.AsSpan(0, _padded).Fill(float.NegativeInfinity);
        _sum.AsSpan(0, _padded).Clear();
    }

    internal override void Attend(RowTile tile, PageView page)
    {
        int headDim = tile.Problem.Shape.HeadDim;
        for (int block = page.Hull.First / Block * Block; block < page.Hull.End; block += Block)
        {
            int count = Math.Min(Block, page.Span.Count - block);
            byte* keys = page.Keys + (block * page.KeyStride);
            byte* values = page.Values + (block * page.ValueStride);
            byte* next = block + Block < page.Hull.End ? keys + (Block * page.KeyStride) : page.NextKeys;
            Scores(keys, page.KeyStride, count, headDim, values == keys ? null : values, page.ValueStride);
            for (int row = 0; row < _padded; row++)
            {
                Weigh(tile, page, row, block, count);
            }

            AddValues(values, page.ValueStride, count, next);
        }
    }

    internal override void Finish(float* output, float* max, float* sum)
    {
        float* outputs = _outputs.Floats(0);
        for (int row = 0; row < _rows; row++)
        {
            (max[row], sum[row]) = (_max[row], (float)_sum[row]);
            float share = _sum[row] == 0 ? 0 : (float)(_valueScale / _sum[row]);
            for (int i = 0; i < _valueDim; i++)
            {
                output[(row * _valueDim) + i] = outputs[(row * _outputStride) + i] * share;
            }
        }
    }

    protected override void Dispose(bool disposing)
    {
        _queries.Dispose();
        _outputs.Dispose();
        _weights.Dispose();
    }

    private static int RoundUp(int count) => (count + TWidth.Count - 1) / TWidth.Count * TWidth.Count;

    // Four rows share each load of a key; the rows that are left go one by one.
    private void Scores(byte* keys, nint keyStride, int count, int headDim, byte* values, nint valueStride)
    {
        float* queries = _queries.Floats(0);
        float* scores = _weights.Floats(0);
        int row = 0;
        for (; row + 4 <= _padded; row += 4)
        {
            RowScores<TWidth, TVector, TElement>.Four(
                queries + (row * _queryStride), _queryStride, keys, keyStride, count, headDim, scores + (row * Block),
                row == 0 ? values : null, valueStride);
        }

        for (; row < _padded; row++)
        {
            RowScores<TWidth, TVector, TElement>.One(
                queries + (row * _queryStride), keys, keyStride, count, headDim, scores + (row * Block),
                row == 0 ? values : null, valueStride);
        }
    }

    // Scores become weights e^(score - max); what the row's maximum rose by is left in _correction.
    private void Weigh(RowTile tile, PageView page, int row, int block, int count)
    {
        float* scores = _weights.Floats(0) + (row * Block);
        KeyInterval seen = row < _rows ? page.Indices[row] : default;
        int first = Math.Clamp(seen.First - block, 0, count);
        int end = Math.Clamp(seen.End - block, 0, count);
        if (end <= first)
        {
            new Span<float>(scores, Block).Clear();
            _correction[row] = 1;
            return;
        }

        AttentionProblem problem = tile.Problem;
        if (problem.Options.Softcap > 0)
        {
            RowSoftmax<TWidth, TVector>.Cap(scores, problem.Options.Softcap);
        }

        new Span<float>(scores, first).Fill(float.NegativeInfinity);
        new Span<float>(scores + end, Block - end).Fill(float.NegativeInfinity);
        if (problem.Mask.HasBias || problem.Mask.HasKeyRules)
        {
            float* bias = stackalloc float[Block];
            FillBias(tile, page, row, block, new Span<float>(bias, count));
            RowSoftmax<TWidth, TVector>.AddBias(scores, bias, first, end);
        }

        float before = _max[row];
        float max = MathF.Max(before, RowSoftmax<TWidth, TVector>.Largest(scores));
        if (float.IsNegativeInfinity(max))
        {
            new Span<float>(scores, Block).Clear();
            _correction[row] = 1;
            return;
        }

        _max[row] = max;
        if (isCanonical)
        {
            float fade = before == max ? 1 : CanonicalOrder<TWidth, TVector>.Fade(before, max);
            float total = CanonicalOrder<TWidth, TVector>.Exponentiate(scores, max, TElement.Shift);
            (_correction[row], _sum[row]) = (fade, MathF.FusedMultiplyAdd((float)_sum[row], fade, total));
            return;
        }

        float correction = before == max ? 1 : MathF.Exp(before - max);
        float sum = RowSoftmax<TWidth, TVector>.Exponentiate(scores, max, TElement.Shift);
        _correction[row] = correction;
        _sum[row] = (_sum[row] * correction) + sum;
    }

    private void AddValues(byte* values, nint valueStride, int count, byte* next)
    {
        float* outputs = _outputs.Floats(0);
        float* weights = _weights.Floats(0);
        fixed (float* correction = _correction)
        {
            int row = 0;
            for (; row + 4 <= _padded; row += 4)
            {
                RowValues<TWidth, TVector, TElement>.Four(
                    weights + (row * Block), values, valueStride, count, outputs + (row * _outputStride), _outputStride,
                    correction + row, row == 0 ? next : values);
            }

            for (; row < _padded; row++)
            {
                RowValues<TWidth, TVector, TElement>.One(
                    weights + (row * Block), values, valueStride, count, outputs + (row * _outputStride), _outputStride,
                    correction[row], row == 0 ? next : values);
            }
        }
    }
}

/// <summary>Dot products of query rows with the keys of a block: scores [rows, <see cref="TileKernel.Block"/>].</summary>
/// <remarks>
/// Each score is one chain of fused multiply-adds per vector lane and one fixed tree over the lanes, in both shapes, so a
/// row's bits do not depend on its neighbours. Scores past the count repeat the last key's; the caller hides them.
/// </remarks>
internal static unsafe class RowScores<TWidth, TVector, TElement>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    private const int Line = 64;

    /// <summary>Four rows, two keys at a time.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Four(
        float* queries, int queryStride, byte* keys, nint keyStride, int count, int headDim, float* scores,
        byte* fetch, nint fetchStride)
    {
        int whole = headDim / TWidth.Count * TWidth.Count;
        float* q1 = queries + queryStride;
        float* q2 = q1 + queryStride;
        float* q3 = q2 + queryStride;
        for (int key = 0; key < count; key += 2)
        {
            Prefetch(fetch, key, 2, fetchStride);
            byte* left = keys + (key * keyStride);
            byte* right = keys + (Math.Min(key + 1, count - 1) * keyStride);
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            for (int i = 0; i < whole; i += TWidth.Count)
            {
                TVector a = TElement.Load<TWidth, TVector>(left + (i * TElement.Size));
                TVector b = TElement.Load<TWidth, TVector>(right + (i * TElement.Size));
                TVector q = TWidth.Load(queries + i);
                a0 = TWidth.MultiplyAdd(a, q, a0);
                b0 = TWidth.MultiplyAdd(b, q, b0);
                q = TWidth.Load(q1 + i);
                a1 = TWidth.MultiplyAdd(a, q, a1);
                b1 = TWidth.MultiplyAdd(b, q, b1);
                q = TWidth.Load(q2 + i);
                a2 = TWidth.MultiplyAdd(a, q, a2);
                b2 = TWidth.MultiplyAdd(b, q, b2);
                q = TWidth.Load(q3 + i);
                a3 = TWidth.MultiplyAdd(a, q, a3);
                b3 = TWidth.MultiplyAdd(b, q, b3);
            }

            if (whole < headDim)
            {
                TVector a = Tail(left, whole, headDim);
                TVector b = Tail(right, whole, headDim);
                a0 = TWidth.MultiplyAdd(a, TWidth.Load(queries + whole), a0);
                b0 = TWidth.MultiplyAdd(b, TWidth.Load(queries + whole), b0);
                a1 = TWidth.MultiplyAdd(a, TWidth.Load(q1 + whole), a1);
                b1 = TWidth.MultiplyAdd(b, TWidth.Load(q1 + whole), b1);
                a2 = TWidth.MultiplyAdd(a, TWidth.Load(q2 + whole), a2);
                b2 = TWidth.MultiplyAdd(b, TWidth.Load(q2 + whole), b2);
                a3 = TWidth.MultiplyAdd(a, TWidth.Load(q3 + whole), a3);
                b3 = TWidth.MultiplyAdd(b, TWidth.Load(q3 + whole), b3);
            }

            Vector256<float> sums = TWidth.Sums(a0, b0, a1, b1, a2, b2, a3, b3);
            Vector256<double> pairs = sums.AsDouble();
            *(double*)(scores + key) = pairs[0];
            *(double*)(scores + TileKernel.Block + key) = pairs[1];
            *(double*)(scores + (2 * TileKernel.Block) + key) = pairs[2];
            *(double*)(scores + (3 * TileKernel.Block) + key) = pairs[3];
        }
    }

    /// <summary>One row, eight keys at a time.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void One(
        float* query, byte* keys, nint keyStride, int count, int headDim, float* scores, byte* fetch, nint fetchStride)
    {
        int whole = headDim / TWidth.Count * TWidth.Count;
        for (int key = 0; key < count; key += 8)
        {
            Prefetch(fetch, key, 8, fetchStride);
            byte* k0 = keys + (key * keyStride);
            byte* k1 = keys + (Math.Min(key + 1, count - 1) * keyStride);
            byte* k2 = keys + (Math.Min(key + 2, count - 1) * keyStride);
            byte* k3 = keys + (Math.Min(key + 3, count - 1) * keyStride);
            byte* k4 = keys + (Math.Min(key + 4, count - 1) * keyStride);
            byte* k5 = keys + (Math.Min(key + 5, count - 1) * keyStride);
            byte* k6 = keys + (Math.Min(key + 6, count - 1) * keyStride);
            byte* k7 = keys + (Math.Min(key + 7, count - 1) * keyStride);
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
            for (int i = 0; i < whole; i += TWidth.Count)
            {
                TVector q = TWidth.Load(query + i);
                nint at = (nint)i * TElement.Size;
                a0 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k0 + at), q, a0);
                a1 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k1 + at), q, a1);
                a2 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k2 + at), q, a2);
                a3 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k3 + at), q, a3);
                a4 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k4 + at), q, a4);
                a5 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k5 + at), q, a5);
                a6 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k6 + at), q, a6);
                a7 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k7 + at), q, a7);
            }

            if (whole < headDim)
            {
                TVector q = TWidth.Load(query + whole);
                a0 = TWidth.MultiplyAdd(Tail(k0, whole, headDim), q, a0);
                a1 = TWidth.MultiplyAdd(Tail(k1, whole, headDim), q, a1);
                a2 = TWidth.MultiplyAdd(Tail(k2, whole, headDim), q, a2);
                a3 = TWidth.MultiplyAdd(Tail(k3, whole, headDim), q, a3);
                a4 = TWidth.MultiplyAdd(Tail(k4, whole, headDim), q, a4);
                a5 = TWidth.MultiplyAdd(Tail(k5, whole, headDim), q, a5);
                a6 = TWidth.MultiplyAdd(Tail(k6, whole, headDim), q, a6);
                a7 = TWidth.MultiplyAdd(Tail(k7, whole, headDim), q, a7);
            }

            TWidth.Sums(a0, a1, a2, a3, a4, a5, a6, a7).Store(scores + key);
        }
    }

    // What follows the key may be another head's NaN: it is cut off, not multiplied by zero.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TVector Tail(byte* key, int whole, int headDim) =>
        TWidth.KeepFirst(TElement.Load<TWidth, TVector>(key + (whole * TElement.Size)), headDim - whole);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(byte* fetch, int first, int count, nint stride)
    {
        if (Sse.IsSupported && fetch != null)
        {
            byte* from = fetch + (first * stride);
            for (nint at = 0; at < count * stride; at += Line)
            {
                Sse.Prefetch0(from + at);
            }
        }
    }
}

/// <summary>Weighted sums of a block's values: output := output·correction + Σ weight·value.</summary>
/// <remarks>A block is summed in fresh registers before it meets the running output, so rounding grows with the root of the blocks.</remarks>
internal static unsafe class RowValues<TWidth, TVector, TElement>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    /// <summary>Four rows of weights [4, <see cref="TileKernel.Block"/>], two vectors of each output at a time.</summary>
    /// <param name="weights">Weights; those of hidden keys are 0.</param>
    /// <param name="values">First value.</param>
    /// <param name="valueStride">Bytes from one value to the next.</param>
    /// <param name="count">Keys of the block.</param>
    /// <param name="outputs">[4, outputStride]; outputStride is a multiple of the vector's length.</param>
    /// <param name="outputStride">Floats from one row to the next.</param>
    /// <param name="correction">[4]</param>
    /// <param name="fetch">What will be read next.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Four(
        float* weights, byte* values, nint valueStride, int count, float* outputs, int outputStride, float* correction,
        byte* fetch)
    {
        float* w1 = weights + TileKernel.Block;
        float* w2 = w1 + TileKernel.Block;
        float* w3 = w2 + TileKernel.Block;
        int step = 2 * TWidth.Count * TElement.Size;
        int at = 0;
        for (; at + (2 * TWidth.Count) <= outputStride; at += 2 * TWidth.Count)
        {
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            byte* value = values + (at * TElement.Size);
            for (int key = 0; key < count; key++)
            {
                TVector a = TElement.Load<TWidth, TVector>(value);
                TVector b = TElement.Load<TWidth, TVector>(value + (TWidth.Count * TElement.Size));
                value += valueStride;
                Prefetch(ref fetch, step);
                TVector w = TWidth.Create(weights[key]);
                a0 = TWidth.MultiplyAdd(w, a, a0);
                b0 = TWidth.MultiplyAdd(w, b, b0);
                w = TWidth.Create(w1[key]);
                a1 = TWidth.MultiplyAdd(w, a, a1);
                b1 = TWidth.MultiplyAdd(w, b, b1);
                w = TWidth.Create(w2[key]);
                a2 = TWidth.MultiplyAdd(w, a, a2);
                b2 = TWidth.MultiplyAdd(w, b, b2);
                w = TWidth.Create(w3[key]);
                a3 = TWidth.MultiplyAdd(w, a, a3);
                b3 = TWidth.MultiplyAdd(w, b, b3);
            }

            float* output = outputs + at;
            Add(output, correction[0], a0, b0);
            Add(output + outputStride, correction[1], a1, b1);
            Add(output + (2 * outputStride), correction[2], a2, b2);
            Add(output + (3 * outputStride), correction[3], a3, b3);
        }

        for (; at < outputStride; at += TWidth.Count)
        {
            for (int row = 0; row < 4; row++)
            {
                Column(weights + (row * TileKernel.Block), values + (at * TElement.Size), valueStride, count,
                    outputs + (row * outputStride) + at, correction[row]);
            }
        }
    }

    /// <summary>One row of weights, four vectors of its output at a time.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void One(
        float* weights, byte* values, nint valueStride, int count, float* output, int outputStride, float correction,
        byte* fetch)
    {
        int step = 4 * TWidth.Count * TElement.Size;
        int at = 0;
        for (; at + (4 * TWidth.Count) <= outputStride; at += 4 * TWidth.Count)
        {
            TVector a = TWidth.Create(0f), b = a, c = a, d = a;
            byte* value = values + (at * TElement.Size);
            for (int key = 0; key < count; key++)
            {
                TVector w = TWidth.Create(weights[key]);
                a = TWidth.MultiplyAdd(w, TElement.Load<TWidth, TVector>(value), a);
                b = TWidth.MultiplyAdd(w, TElement.Load<TWidth, TVector>(value + (TWidth.Count * TElement.Size)), b);
                c = TWidth.MultiplyAdd(w, TElement.Load<TWidth, TVector>(value + (2 * TWidth.Count * TElement.Size)), c);
                d = TWidth.MultiplyAdd(w, TElement.Load<TWidth, TVector>(value + (3 * TWidth.Count * TElement.Size)), d);
                value += valueStride;
                Prefetch(ref fetch, step);
            }

            Add(output + at, correction, a, b);
            Add(output + at + (2 * TWidth.Count), correction, c, d);
        }

        for (; at < outputStride; at += TWidth.Count)
        {
            Column(weights, values + (at * TElement.Size), valueStride, count, output + at, correction);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Add(float* output, float correction, TVector first, TVector second)
    {
        TVector by = TWidth.Create(correction);
        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(output), by, first), output);
        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(output + TWidth.Count), by, second), output + TWidth.Count);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Column(float* weights, byte* value, nint valueStride, int count, float* output, float correction)
    {
        TVector sum = TWidth.Create(0f);
        for (int key = 0; key < count; key++)
        {
            sum = TWidth.MultiplyAdd(TWidth.Create(weights[key]), TElement.Load<TWidth, TVector>(value), sum);
            value += valueStride;
        }

        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(output), TWidth.Create(correction), sum), output);
    }

    // Spread over the loop, a line or more a key: together about as many bytes as the next block of keys has.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(ref byte* fetch, int step)
    {
        if (Sse.IsSupported)
        {
            Sse.Prefetch0(fetch);
            if (step > 64)
            {
                Sse.Prefetch0(fetch + 64);
            }

            if (step > 128)
            {
                Sse.Prefetch0(fetch + 128);
                Sse.Prefetch0(fetch + 192);
            }

            fetch += step;
        }
    }
}
