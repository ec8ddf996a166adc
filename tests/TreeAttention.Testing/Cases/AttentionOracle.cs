using System;
using System.Linq;

namespace TreeAttention.Testing.Cases;

/// <summary>Dense attention in float64 with mask rules of its own, written from the reference; judges every algorithm.</summary>
internal sealed class AttentionOracle
{
    private readonly AttentionCase _case;
    private readonly double[][] _outputs; // [batch, head, query][value_dim]
    private readonly double[] _lses;
    private readonly double[] _scales; // [row] the largest Σ p·|v| of an element: what rounding is relative to where values cancel

    public AttentionOracle(AttentionCase attention)
    {
        _case = attention;
        AttentionShape shape = attention.Shape;
        int rows = shape.Batch * shape.QueryHeads * shape.QueryLength;
        _outputs = new double[rows][];
        _lses = new double[rows];
        _scales = new double[rows];
        for (int row = 0; row < rows; row++)
        {
            Attend(row);
        }
    }

    /// <summary>Largest error of a state over these queries: of outputs as a part of the row's scale, of log-sum-exps as a part of them.</summary>
    public double ErrorOf(ReadOnlySpan<float> state, int[] indices)
    {
        AttentionShape shape = _case.Shape;
        int heads = shape.Batch * shape.QueryHeads;
        int rows = heads * indices.Length;
        double most = 0;
        for (int row = 0; row < rows; row++)
        {
            int expected = (row / indices.Length * shape.QueryLength) + indices[row % indices.Length];
            float max = state[(rows * shape.ValueDim) + row];
            float sum = state[(rows * (shape.ValueDim + 1)) + row];
            double lse = sum == 0 ? double.NegativeInfinity : max + Math.Log(sum);
            most = Worse(most, lse == _lses[expected] ? 0 : (lse - _lses[expected]) / Math.Max(1, Math.Abs(_lses[expected])));
            for (int d = 0; d < shape.ValueDim; d++)
            {
                double difference = state[(row * shape.ValueDim) + d] - _outputs[expected][d];
                most = Worse(most, difference == 0 ? 0 : difference / _scales[expected]);
            }
        }

        return most;
    }

    private static double Worse(double most, double error) =>
        double.IsFinite(error) ? Math.Max(most, Math.Abs(error)) : double.PositiveInfinity;

    private void Attend(int row)
    {
        AttentionShape shape = _case.Shape;
        int query = row % shape.QueryLength;
        int head = row / shape.QueryLength % shape.QueryHeads;
        int batch = row / shape.QueryLength / shape.QueryHeads;
        double[] scores = [.. Enumerable.Range(0, shape.KeyLength).Select(key => Score(batch, head, query, key))];
        double top = scores.Length == 0 ? double.NegativeInfinity : scores.Max();
        _outputs[row] = new double[shape.ValueDim];
        _lses[row] = double.NegativeInfinity;
        if (double.IsNegativeInfinity(top))
        {
            return;
        }

        double whole = scores.Sum(score => Math.Exp(score - top));
        _lses[row] = top + Math.Log(whole);
        double[] magnitudes = new double[shape.ValueDim];
        for (int key = 0; key < scores.Length; key++)
        {
            int token = (((batch * shape.KeyLength) + key) * shape.KvHeads) + (head / (shape.QueryHeads / shape.KvHeads));
            for (int d = 0; d < shape.ValueDim; d++)
            {
                double share = Math.Exp(scores[key] - top) / whole * _case.Value[(token * shape.ValueDim) + d];
                _outputs[row][d] += share;
                magnitudes[d] += Math.Abs(share);
            }
        }

        _scales[row] = magnitudes.Max();
    }

    private double Score(int batch, int head, int query, int key)
    {
        AttentionShape shape = _case.Shape;
        AttentionOptions options = _case.Problem.Options;
        (int start, int keys, int queries, int row) = SequenceOf(batch, query);
        int position = query + keys - queries;
        int place = PositionOf(options, position - query, position);
        int keyPlace = PositionOf(options, position - query, key);
        bool hidden = key < start || key >= keys || query >= queries
            || (options.Causal && keyPlace > place)
            || (options.WindowLeft >= 0 && keyPlace < place - options.WindowLeft)
            || (options.WindowRight >= 0 && keyPlace > place + options.WindowRight)
            || (options.LocalChunk > 0 && (keyPlace > place || keyPlace < place - Modulo(place - start, options.LocalChunk)))
            || (options.DfsStart is not null && (key > position
                || options.DfsStart[(batch * shape.QueryLength) + query] > options.DfsEnd![(batch * shape.KeyLength) + key]));
        int maskColumn = key - keys + options.TailMaskLength;
        if (options.TailMask is not null && maskColumn >= 0 && !hidden)
        {
            hidden = !options.TailMask[(((batch * shape.QueryLength) + query) * options.TailMaskLength) + maskColumn];
        }

        if (hidden)
        {
            return double.NegativeInfinity;
        }

        int q = ((((batch * shape.QueryLength) + query) * shape.QueryHeads) + head) * shape.HeadDim;
        int k = ((((batch * shape.KeyLength) + key) * shape.KvHeads) + (head / (shape.QueryHeads / shape.KvHeads))) * shape.HeadDim;
        double score = Enumerable.Range(0, shape.HeadDim).Sum(d => (double)_case.Query[q + d] * _case.Key[k + d]) / Math.Sqrt(shape.HeadDim);
        score = options.Softcap > 0 ? options.Softcap * Math.Tanh(score / options.Softcap) : score;
        if (options.AlibiSlopes is { } slopes)
        {
            score -= slopes[((row * shape.QueryHeads) + head) % slopes.Length] * Math.Abs(place - keyPlace);
        }

        int biasColumn = key - keys + options.TailBiasLength;
        return options.TailBias is not null && biasColumn >= 0 ? score + options.TailBias[(query * options.TailBiasLength) + biasColumn] : score;
    }

    private static int Modulo(int number, int by) => ((number % by) + by) % by;

    // First key, end of the keys, end of the queries and number of a query's sequence.
    private (int Start, int Keys, int Queries, int Row) SequenceOf(int batch, int query)
    {
        AttentionOptions options = _case.Problem.Options;
        if (options is { PackedQueries: { } queryBounds, PackedKeys: { } keyBounds })
        {
            int sequence = Enumerable.Range(0, queryBounds.Length - 1).Single(s => queryBounds[s] <= query && query < queryBounds[s + 1]);
            return (keyBounds[sequence], keyBounds[sequence + 1], queryBounds[sequence + 1], sequence);
        }

        return (
            options.KeyStarts?[batch] ?? 0, options.KeyLengths?[batch] ?? _case.Shape.KeyLength,
            options.QueryLengths?[batch] ?? _case.Shape.QueryLength, batch);
    }

    // Where a key of the tree, or a query, stands: at its depth behind the first.
    private static int PositionOf(AttentionOptions options, int shift, int place) =>
        options.QueryDepths is { } depths && place >= shift && place - shift < depths.Length ? shift + depths[place - shift] : place;
}
