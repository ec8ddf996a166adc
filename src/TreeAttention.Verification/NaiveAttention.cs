using System;
using System.Numerics.Tensors;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Verification;

/// <summary>The same row as the reference, computed plainly in a storage type: the baseline of flash-attn's rule of twice its error.</summary>
/// <remarks>
/// Inputs, scores, weights and output are each rounded to the type; dot products, the softmax and the weighted sum work in
/// single precision in between. With f32 everything is plain single precision. With eight bits keys and values alone are rounded
/// to them, by their scales; all else to f16, in which such keys are computed with.
/// </remarks>
public static class NaiveAttention
{
    /// <summary>Output and log-sum-exp of one query and head; parameters as in <see cref="ReferenceAttention"/>.</summary>
    /// <param name="problem">Sizes, masks and biases.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim]</param>
    /// <param name="key">[batch, key_len, kv_heads, head_dim]</param>
    /// <param name="value">[batch, key_len, kv_heads, value_dim]</param>
    /// <param name="storage">The type that everything is rounded to.</param>
    /// <param name="row">Which row.</param>
    /// <param name="output">[value_dim]</param>
    /// <param name="lse">Natural logarithm, in single precision.</param>
    /// <param name="scales">Scales of storage that has some; 1 when null.</param>
    /// <param name="rounding">What is rounded at all.</param>
    public static void Row(
        AttentionProblem problem, TensorView query, TensorView key, TensorView value, ElementType storage, AttentionRow row,
        Span<float> output, out float lse, KeyValueScales? scales = null, NaiveRounding rounding = NaiveRounding.Everything)
    {
        ElementType narrow = StorageType.Of(storage).Arithmetic;
        ElementType arithmetic = rounding == NaiveRounding.Everything ? narrow : ElementType.Float32;
        ElementType queries = rounding == NaiveRounding.Storage ? ElementType.Float32 : narrow;
        int kvHead = row.Head / problem.Shape.GroupSize;
        output.Clear();
        lse = float.NegativeInfinity;
        if (row.Query >= problem.Mask.QueryLength(row.Batch))
        {
            return;
        }

        float[] scores = Scores(
            problem, new StoredRows(query, queries, 1f), new StoredRows(key, storage, scales?.Key[kvHead] ?? 1f), arithmetic, row);
        float sink = problem.Options.Sinks?[row.Head] ?? float.NegativeInfinity;
        float top = scores.Length == 0 ? sink : MathF.Max(sink, TensorPrimitives.Max<float>(scores));
        if (float.IsNegativeInfinity(top))
        {
            return;
        }

        float whole = MathF.Exp(sink - top);
        for (int j = 0; j < scores.Length; j++)
        {
            scores[j] = MathF.Exp(scores[j] - top);
            whole += scores[j];
        }

        TensorPrimitives.Divide(scores, whole, scores);
        Round(scores, arithmetic);
        var values = new StoredRows(value, storage, scales?.Value[kvHead] ?? 1f);
        for (int j = 0; j < scores.Length; j++)
        {
            if (scores[j] != 0)
            {
                TensorPrimitives.MultiplyAdd(values.Read(row.Batch, j, kvHead), scores[j], output, output);
            }
        }

        Round(output, arithmetic);
        lse = top + MathF.Log(whole);
    }

    private static float[] Scores(AttentionProblem problem, StoredRows queries, StoredRows keys, ElementType arithmetic, AttentionRow row)
    {
        KeyInterval visible = problem.Mask.Visible(row.Batch, row.Query);
        float[] scores = new float[visible.End];
        Array.Fill(scores, float.NegativeInfinity);
        float[] queryRow = queries.Read(row.Batch, row.Query, row.Head).ToArray();
        float softcap = problem.Options.Softcap;
        Span<float> score = stackalloc float[1];
        for (int j = visible.First; j < visible.End; j++)
        {
            if (!problem.Mask.KeepsInside(row.Batch, row.Query, j))
            {
                continue;
            }

            score[0] = (float)problem.Scale * TensorPrimitives.Dot(queryRow, keys.Read(row.Batch, j, row.Head / problem.Shape.GroupSize));
            Round(score, arithmetic);
            if (softcap > 0)
            {
                score[0] = softcap * MathF.Tanh(score[0] / softcap);
                Round(score, arithmetic);
            }

            score[0] += (float)problem.Mask.Bias(row.Batch, row.Head, row.Query, j);
            Round(score, arithmetic);
            scores[j] = score[0];
        }

        return scores;
    }

    private static void Round(Span<float> numbers, ElementType storage)
    {
        if (storage != ElementType.Float32)
        {
            Span<byte> rounded = numbers.Length == 1 ? stackalloc byte[2] : new byte[storage.BytesFor(numbers.Length)];
            ElementConversion.FromFloat(numbers, storage, rounded);
            ElementConversion.ToFloat(rounded, storage, numbers);
        }
    }

    private sealed class StoredRows(TensorView view, ElementType storage, float scale)
    {
        private readonly TensorRows _rows = new(view);
        private readonly RowStorage _storage = new(view.Type, storage, (int)view.Shape[3]);
        private readonly byte[] _stored = new byte[storage.BytesFor(view.Shape[3])];

        private readonly float[] _numbers = new float[view.Shape[3]];

        public ReadOnlySpan<float> Read(int batch, int position, int head)
        {
            TensorPrimitives.Multiply(_storage.Store(_rows.Bytes(batch, position, head), _stored, scale), scale, _numbers);
            return _numbers;
        }
    }
}

/// <summary>What <see cref="NaiveAttention"/> rounds to the storage type.</summary>
public enum NaiveRounding
{
    /// <summary>Inputs, scores, weights and output.</summary>
    Everything,

    /// <summary>Query, keys and values; all else is single precision.</summary>
    Inputs,

    /// <summary>Keys and values; all else is single precision.</summary>
    Storage,
}
