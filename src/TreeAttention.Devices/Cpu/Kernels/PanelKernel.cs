using System;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu.Kernels;

/// <summary>Attention of many query rows: bound by arithmetic. Vectors run along the rows, keys and values are broadcast.</summary>
/// <remarks>
/// Both products are then one register tile, (4 keys or value elements) × (3 vectors of rows), over operands that need no
/// packing: K and V as they are stored, queries transposed once. Softmax, masks and corrections are plain vector operations.
/// Rows that fill no panel of three vectors go in panels of one. 16- and 8-bit blocks are widened once for all panels.
/// </remarks>
/// <param name="isCanonical">Sums follow <see cref="CanonicalOrder{TWidth, TVector}"/>.</param>
/// <param name="account">Counts the scratch memory.</param>
internal sealed unsafe class PanelKernel<TWidth, TVector, TElement>(bool isCanonical, MemoryAccount account) : TileKernel
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    private readonly Scratch _queries = new(account);
    private readonly Scratch _outputs = new(account);
    private readonly Scratch _weights = new(account);
    private readonly Scratch _rowState = new(account);
    private readonly Scratch _keys = new(account);
    private readonly Scratch _values = new(account);
    private int _rows;
    private int _padded;
    private int _headDim;
    private int _valueDim;
    private double _valueScale;
    private int _outputDim;
    private byte* _nextKeys;
    private byte* _nextValues;

    internal override double QueryLimit => isCanonical ? ShiftedQueryLimit(TElement.Shift) : double.PositiveInfinity;

    internal override double ScoreLimit { get; } = StorageType.Of(TElement.Type).ScoreLimit;

    // One chain over a long head dimension rounds scores near the limit too far for fp32 results; 16-bit keys have rounded more.
    private static int ScoreChain => typeof(TElement) == typeof(Float32Element) ? 32 : int.MaxValue;

    // Per row: max, sum, correction of the block, first and last index of the page.
    private float* Max => _rowState.Floats(0);

    private float* Sum => Max + _padded;

    private float* Correction => Sum + _padded;

    private float* First => Correction + _padded;

    private float* End => First + _padded;

    internal override void Load(RowTile tile)
    {
        (_headDim, _valueDim) = (tile.Problem.Shape.HeadDim, tile.Problem.Shape.ValueDim);
        _rows = tile.Count;
        _padded = (_rows + TWidth.Count - 1) / TWidth.Count * TWidth.Count;
        _outputDim = (_valueDim + 7) / 8 * 8;
        _ = _rowState.Floats(5L * _padded);
        _ = _outputs.Floats((long)_padded * _outputDim);
        _ = _weights.Floats(3L * TWidth.Count * (Block + 8));
        float* queries = _queries.Floats((long)_padded * _headDim);
        new Span<float>(queries, _padded * _headDim).Clear();
        _valueScale = tile.ValueScale;
        float scale = (float)tile.ScoreScale;
        for (int first = 0; first < _padded;)
        {
            int width = WidthAt(first);
            float* panel = queries + ((long)first * _headDim);
            for (int row = 0; row < Math.Min(width, _rows - first); row++)
            {
                float* query = tile.Queries + ((long)(first + row) * _headDim);
                if (isCanonical)
                {
                    CanonicalOrder<TWidth, TVector>.Arrange(query, _headDim, scale, panel + row, width);
                    continue;
                }

                for (int i = 0; i < _headDim; i++)
                {
                    panel[(i * width) + row] = query[i] * scale;
                }
            }

            first += width;
        }
    }

    internal override void Reset()
    {
        new Span<float>(_outputs.Floats(0), _padded * _outputDim).Clear();
        new Span<float>(Max, _padded).Fill(float.NegativeInfinity);
        new Span<float>(Sum, _padded).Clear();
    }

    internal override void Attend(RowTile tile, PageView page)
    {
        for (int row = 0; row < _padded; row++)
        {
            KeyInterval seen = row < _rows ? page.Indices[row] : default;
            First[row] = seen.First;
            End[row] = seen.End;
        }

        for (int block = page.Hull.First / Block * Block; block < page.Hull.End; block += Block)
        {
            int count = Math.Min(Block, page.Span.Count - block);
            (nint, nint) keys = Widen(_keys, page.Keys + (block * page.KeyStride), page.KeyStride, count, _headDim);
            (nint, nint) values = Widen(_values, page.Values + (block * page.ValueStride), page.ValueStride, count, _outputDim);
            bool isLast = block + Block >= page.Hull.End;
            _nextKeys = isLast ? page.NextKeys : page.Keys + ((block + Block) * page.KeyStride);
            _nextValues = isLast ? page.NextValues : page.Values + ((block + Block) * page.ValueStride);
            for (int first = 0; first < _padded; first += WidthAt(first))
            {
                AttendPanel(tile, page, block, count, first, keys, values);
            }
        }
    }

    internal override void Finish(float* output, float* max, float* sum)
    {
        new Span<float>(Max, _rows).CopyTo(new Span<float>(max, _rows));
        new Span<float>(Sum, _rows).CopyTo(new Span<float>(sum, _rows));
        float* outputs = _outputs.Floats(0);
        for (int first = 0; first < _padded;)
        {
            int width = WidthAt(first);
            float* panel = outputs + ((long)first * _outputDim);
            for (int row = 0; row < Math.Min(width, _rows - first); row++)
            {
                float* target = output + ((long)(first + row) * _valueDim);
                double share = sum[first + row] == 0 ? 0 : _valueScale / sum[first + row];
                share = isCanonical ? (float)share : share;
                for (int i = 0; i < _valueDim; i++)
                {
                    target[i] = (float)(panel[(i * width) + row] * share);
                }
            }

            first += width;
        }
    }

    protected override void Dispose(bool disposing)
    {
        _queries.Dispose();
        _outputs.Dispose();
        _weights.Dispose();
        _rowState.Dispose();
        _keys.Dispose();
        _values.Dispose();
    }

    // Panels of three vectors as long as more than two are left, then panels of one.
    private int WidthAt(int first) => _padded - first > 2 * TWidth.Count ? 3 * TWidth.Count : TWidth.Count;

    // fp32 is read where it lies, anything else is converted to rows of `elements`; what lies past them is overwritten by the next row.
    private static (nint Address, nint Stride) Widen(Scratch scratch, byte* source, nint stride, int count, int elements)
    {
        if (typeof(TElement) == typeof(Float32Element))
        {
            return ((nint)source, stride / sizeof(float));
        }

        float* target = scratch.Floats(((long)Block * elements) + TWidth.Count);
        PanelSteps<TWidth, TVector, TElement>.Widen(source, stride, count, elements, target);
        return ((nint)target, elements);
    }

    private void AttendPanel(
        RowTile tile, PageView page, int block, int count, int first,
        (nint Address, nint Stride) keys, (nint Address, nint Stride) values)
    {
        int width = WidthAt(first);
        KeyInterval hull = HullOf(page, first, Math.Min(width, _rows - first));
        int low = Math.Max(hull.First - block, 0);
        int high = Math.Min(hull.End - block, count);
        if (high <= low)
        {
            return;
        }

        // Scores are made in groups of keys, aligned to the block; those outside [low, high) are not looked at.
        int step = width == TWidth.Count ? 8 : 4;
        float* scores = _weights.Floats(0);
        float* queries = _queries.Floats(0) + ((long)first * _headDim);
        for (int key = low / step * step; key < high; key += step)
        {
            if (first == 0)
            {
                PanelSteps<TWidth, TVector, TElement>.Prefetch(_nextKeys + (key * page.KeyStride), step * page.KeyStride);
                PanelSteps<TWidth, TVector, TElement>.Prefetch(_nextValues + (key * page.ValueStride), step * page.ValueStride);
            }

            if (isCanonical)
            {
                CanonicalOrder<TWidth, TVector>.Multiply(width, (float*)keys.Address, keys.Stride, key, count, _headDim, queries, scores + (key * width));
            }
            else
            {
                PanelProduct<TWidth, TVector>.Multiply(
                    width, (float*)keys.Address, keys.Stride, 1, key, count, _headDim, ScoreChain, queries, scores + (key * width), null);
            }
        }

        Soften(tile, page, block, first, width, low, high);
        float* outputs = _outputs.Floats(0) + ((long)first * _outputDim);
        float* from = (float*)values.Address + (low * values.Stride);
        for (int element = 0; element < _valueDim; element += step)
        {
            PanelProduct<TWidth, TVector>.Multiply(
                width, from, 1, values.Stride, element, int.MaxValue, high - low, Block, scores + (low * width),
                outputs + (element * width), Correction + first);
        }
    }

    private void Soften(RowTile tile, PageView page, int block, int first, int width, int low, int high)
    {
        float* scores = _weights.Floats(0);
        AttentionProblem problem = tile.Problem;
        if (problem.Options.Softcap > 0)
        {
            PanelSteps<TWidth, TVector, TElement>.Cap(scores + (low * width), (high - low) * width, problem.Options.Softcap);
        }

        if (problem.Mask.HasBias || problem.Mask.HasKeyRules)
        {
            float* bias = stackalloc float[Block];
            for (int row = first; row < Math.Min(first + width, _rows); row++)
            {
                if (!page.Indices[row].IsEmpty)
                {
                    FillBias(tile, page, row, block + low, new Span<float>(bias, high - low));
                    for (int key = low; key < high; key++)
                    {
                        float* score = scores + (key * width) + row - first;
                        *score = float.IsNegativeInfinity(bias[key - low]) ? bias[key - low] : *score + bias[key - low];
                    }
                }
            }
        }

        bool partly = false;
        for (int row = first; row < first + width; row++)
        {
            partly |= First[row] > block + low || End[row] < block + high;
        }

        for (int vector = 0; vector < width; vector += TWidth.Count)
        {
            int row = first + vector;
            if (partly)
            {
                PanelSteps<TWidth, TVector, TElement>.Hide(scores + vector, width, low, high, block, First + row, End + row);
            }

            if (isCanonical)
            {
                CanonicalOrder<TWidth, TVector>.Softmax(scores + vector, width, low, high, Max + row, Sum + row, Correction + row);
            }
            else
            {
                PanelSteps<TWidth, TVector, TElement>.Softmax(scores + vector, width, low, high, Max + row, Sum + row, Correction + row);
            }
        }
    }

    private static KeyInterval HullOf(PageView page, int first, int rows)
    {
        int low = int.MaxValue;
        int high = 0;
        for (int row = first; row < first + rows; row++)
        {
            KeyInterval seen = page.Indices[row];
            if (!seen.IsEmpty)
            {
                low = Math.Min(low, seen.First);
                high = Math.Max(high, seen.End);
            }
        }

        return new KeyInterval(low, high);
    }
}

/// <summary>The register tile of both products: out[a][rows] = Σ_k left(a, k)·right[k][rows].</summary>
/// <remarks>
/// left(a, k) = left[a·outer + k·inner]: for scores a is a key and k runs along the head dimension, for outputs a is a value's
/// element and k runs over keys. Panels of three vectors take four a at a time, panels of one take eight: twelve or eight
/// accumulators fit both register files, and every load of right meets four or eight broadcasts.
/// </remarks>
internal static unsafe class PanelProduct<TWidth, TVector>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    /// <summary>One tile.</summary>
    /// <param name="width">Rows of the panel: one or three vectors.</param>
    /// <param name="left">Broadcast operand.</param>
    /// <param name="outer">Floats from one a to the next.</param>
    /// <param name="inner">Floats from one k to the next.</param>
    /// <param name="first">First a; those from <paramref name="count"/> on repeat the last.</param>
    /// <param name="count">Number of a.</param>
    /// <param name="depth">Number of k.</param>
    /// <param name="chain">Longest chain of multiply-adds; the sums of longer products are added up chain by chain, which rounds less.</param>
    /// <param name="right">[depth][width]</param>
    /// <param name="output">[a][width]</param>
    /// <param name="correction">[width]: output := output·correction + product; null: output := product.</param>
    internal static void Multiply(
        int width, float* left, nint outer, nint inner, int first, int count, int depth, int chain, float* right, float* output,
        float* correction)
    {
        float** rows = stackalloc float*[8];
        for (int a = 0; a < 8; a++)
        {
            rows[a] = left + (Math.Min(first + a, count - 1) * outer);
        }

        if (width == TWidth.Count)
        {
            EightByOne(rows, inner, depth, chain, right, output, correction);
        }
        else
        {
            FourByThree(rows, inner, depth, chain, right, output, correction);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FourByThree(float** left, nint inner, int depth, int chain, float* right, float* output, float* correction)
    {
        float* r0 = left[0], r1 = left[1], r2 = left[2], r3 = left[3];
        nint at = 0;
        for (int done = 0; done < depth; done += chain)
        {
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, b0 = a0, b1 = a0, b2 = a0;
            TVector c0 = a0, c1 = a0, c2 = a0, d0 = a0, d1 = a0, d2 = a0;
            float* last = right + ((nint)Math.Min(chain, depth - done) * 3 * TWidth.Count);
            for (; right < last; at += inner)
            {
                TVector x = TWidth.Load(right);
                TVector y = TWidth.Load(right + TWidth.Count);
                TVector z = TWidth.Load(right + (2 * TWidth.Count));
                right += 3 * TWidth.Count;
                TVector l = TWidth.Create(r0[at]);
                a0 = TWidth.MultiplyAdd(l, x, a0);
                a1 = TWidth.MultiplyAdd(l, y, a1);
                a2 = TWidth.MultiplyAdd(l, z, a2);
                l = TWidth.Create(r1[at]);
                b0 = TWidth.MultiplyAdd(l, x, b0);
                b1 = TWidth.MultiplyAdd(l, y, b1);
                b2 = TWidth.MultiplyAdd(l, z, b2);
                l = TWidth.Create(r2[at]);
                c0 = TWidth.MultiplyAdd(l, x, c0);
                c1 = TWidth.MultiplyAdd(l, y, c1);
                c2 = TWidth.MultiplyAdd(l, z, c2);
                l = TWidth.Create(r3[at]);
                d0 = TWidth.MultiplyAdd(l, x, d0);
                d1 = TWidth.MultiplyAdd(l, y, d1);
                d2 = TWidth.MultiplyAdd(l, z, d2);
            }

            bool isFirst = done == 0;
            Store(output, correction, isFirst, a0, a1, a2);
            Store(output + (3 * TWidth.Count), correction, isFirst, b0, b1, b2);
            Store(output + (6 * TWidth.Count), correction, isFirst, c0, c1, c2);
            Store(output + (9 * TWidth.Count), correction, isFirst, d0, d1, d2);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void EightByOne(float** left, nint inner, int depth, int chain, float* right, float* output, float* correction)
    {
        float* r0 = left[0], r1 = left[1], r2 = left[2], r3 = left[3], r4 = left[4], r5 = left[5], r6 = left[6], r7 = left[7];
        nint at = 0;
        for (int done = 0; done < depth; done += chain)
        {
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
            float* last = right + ((nint)Math.Min(chain, depth - done) * TWidth.Count);
            for (; right < last; at += inner)
            {
                TVector x = TWidth.Load(right);
                right += TWidth.Count;
                a0 = TWidth.MultiplyAdd(TWidth.Create(r0[at]), x, a0);
                a1 = TWidth.MultiplyAdd(TWidth.Create(r1[at]), x, a1);
                a2 = TWidth.MultiplyAdd(TWidth.Create(r2[at]), x, a2);
                a3 = TWidth.MultiplyAdd(TWidth.Create(r3[at]), x, a3);
                a4 = TWidth.MultiplyAdd(TWidth.Create(r4[at]), x, a4);
                a5 = TWidth.MultiplyAdd(TWidth.Create(r5[at]), x, a5);
                a6 = TWidth.MultiplyAdd(TWidth.Create(r6[at]), x, a6);
                a7 = TWidth.MultiplyAdd(TWidth.Create(r7[at]), x, a7);
            }

            bool isFirst = done == 0;
            Store(output, correction, isFirst, a0);
            Store(output + TWidth.Count, correction, isFirst, a1);
            Store(output + (2 * TWidth.Count), correction, isFirst, a2);
            Store(output + (3 * TWidth.Count), correction, isFirst, a3);
            Store(output + (4 * TWidth.Count), correction, isFirst, a4);
            Store(output + (5 * TWidth.Count), correction, isFirst, a5);
            Store(output + (6 * TWidth.Count), correction, isFirst, a6);
            Store(output + (7 * TWidth.Count), correction, isFirst, a7);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(float* output, float* correction, bool isFirst, TVector first, TVector second, TVector third)
    {
        Store(output, correction, isFirst, first);
        Store(output + TWidth.Count, correction == null ? null : correction + TWidth.Count, isFirst, second);
        Store(output + (2 * TWidth.Count), correction == null ? null : correction + (2 * TWidth.Count), isFirst, third);
    }

    // The first chain meets what was there before, corrected; the others join the first.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(float* output, float* correction, bool isFirst, TVector sum)
    {
        if (!isFirst)
        {
            sum = TWidth.Add(TWidth.Load(output), sum);
        }
        else if (correction != null)
        {
            sum = TWidth.MultiplyAdd(TWidth.Load(output), TWidth.Load(correction), sum);
        }

        TWidth.Store(sum, output);
    }
}

/// <summary>The vector steps between the two products of a panel: scores and weights are [keys][rows].</summary>
internal static unsafe class PanelSteps<TWidth, TVector, TElement>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    // Finite stand-in for a maximum of -∞, so that -∞ - max stays -∞.
    private const float Lowest = -1e38f;

    /// <summary>Asks for bytes that will be read soon.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Prefetch(byte* from, nint bytes)
    {
        if (Sse.IsSupported)
        {
            for (nint at = 0; at < bytes; at += 64)
            {
                Sse.Prefetch1(from + at);
            }
        }
    }

    /// <summary>Rows of stored elements as fp32 rows without gaps.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Widen(byte* source, nint stride, int count, int elements, float* target)
    {
        TVector shift = TWidth.Create(TElement.Shift);
        for (int row = 0; row < count; row++)
        {
            for (int i = 0; i < elements; i += TWidth.Count)
            {
                TVector value = TElement.Load<TWidth, TVector>(source + (i * TElement.Size));
                TWidth.Store(TWidth.Multiply(value, shift), target + i);
            }

            source += stride;
            target += elements;
        }
    }

    /// <summary>score := cap·tanh(score / cap)</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Cap(float* scores, int count, float cap)
    {
        TVector by = TWidth.Create(cap);
        for (int i = 0; i < count; i += TWidth.Count)
        {
            TVector score = TWidth.Load(scores + i);
            TWidth.Store(TWidth.Multiply(by, VectorMath<TWidth, TVector>.Tanh(TWidth.Divide(score, by))), scores + i);
        }
    }

    /// <summary>Hides what lies outside each row's interval of indices.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Hide(float* scores, int width, int low, int high, int block, float* first, float* end)
    {
        TVector from = TWidth.Load(first);
        TVector to = TWidth.Load(end);
        for (int key = low; key < high; key++)
        {
            float* at = scores + (key * width);
            TWidth.Store(TWidth.KeepInside(TWidth.Load(at), TWidth.Create(block + key), from, to), at);
        }
    }

    /// <summary>Scores become weights e^(score - max); maximum and sum go on, and the correction says what older weights are worth now.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Softmax(float* scores, int width, int low, int high, float* max, float* sum, float* correction)
    {
        TVector before = TWidth.Load(max);
        TVector top = before;
        for (int key = low; key < high; key++)
        {
            top = TWidth.Max(top, TWidth.Load(scores + (key * width)));
        }

        TVector origin = TWidth.Max(top, TWidth.Create(Lowest));
        TVector total = TWidth.Create(0f);
        for (int key = low; key < high; key++)
        {
            float* at = scores + (key * width);
            TVector weight = VectorMath<TWidth, TVector>.Exp(TWidth.Subtract(TWidth.Load(at), origin));
            total = TWidth.Add(total, weight);
            TWidth.Store(weight, at);
        }

        TVector fade = VectorMath<TWidth, TVector>.Exp(TWidth.Subtract(before, origin));
        TWidth.Store(fade, correction);
        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(sum), fade, total), sum);
        TWidth.Store(top, max);
    }
}
