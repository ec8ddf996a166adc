using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Attention of a few query rows: bound by reading keys and values, so rows share each load of them.</summary>
/// <remarks>
/// Vectors run along the head dimension. For each block of keys: scores, softmax, values; while keys are read the block's
/// values are prefetched, and while values are read the next block's keys.
/// </remarks>
internal sealed unsafe class RowKernel<TWidth, TVector, TElement>(MemoryAccount account) : TileKernel
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

    internal override double QueryLimit => TElement.Shift == 1f ? double.PositiveInfinity : 16384;

    internal override double ScoreLimit => TElement.ScoreLimit;

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

        float correction = before == max ? 1 : MathF.Exp(before - max);
        float sum = RowSoftmax<TWidth, TVector>.Exponentiate(scores, max, TElement.Shift);
        _max[row] = max;
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
