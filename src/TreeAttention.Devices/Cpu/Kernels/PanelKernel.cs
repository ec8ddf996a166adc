using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Attention of many query rows: bound by arithmetic. Vectors run along the rows, keys and values are broadcast.</summary>
/// <remarks>
/// Both products are then one register tile, (4 keys or value elements) × (3 vectors of rows), over operands that need no
/// packing: K and V as they are stored, queries transposed once. Softmax, masks and corrections are plain vector operations.
/// Rows that fill no panel of three vectors go in panels of one. 16- and 8-bit blocks are widened once for all panels.
/// </remarks>
internal sealed unsafe class PanelKernel<TWidth, TVector, TElement>(MemoryAccount account) : TileKernel
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

    internal override double QueryLimit => double.PositiveInfinity;

    internal override double ScoreLimit => TElement.ScoreLimit;

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

            PanelProduct<TWidth, TVector>.Multiply(
                width, (float*)keys.Address, keys.Stride, 1, key, count, _headDim, ScoreChain, queries, scores + (key * width), null);
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
                        scores[(key * width) + row - first] += bias[key - low];
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

            PanelSteps<TWidth, TVector, TElement>.Softmax(
                scores + vector, width, low, high, Max + row, Sum + row, Correction + row);
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
