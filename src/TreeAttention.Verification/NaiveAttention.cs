using System;
using System.Numerics.Tensors;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Verification;

/// <summary>The same row as the reference, computed plainly in a storage type: the baseline of flash-attn's rule of twice its error.</summary>
/// <remarks>
/// Inputs, scores, weights and output are each rounded to the type; dot products, the softmax and the weighted sum work in
/// single precision in between. With f32 everything is plain single precision. With eight bits keys and values alone are rounded
/// to them, by their scales; all else to f16, in which such keys are computed with.
/// </remarks>
internal static class NaiveAttention
{
    /// <summary>Output and log-sum-exp of one query and head; parameters as in <see cref="ReferenceAttention"/>.</summary>
    /// <param name="call">Sizes, options, tensors, and the type that everything is rounded to.</param>
    /// <param name="row">Which row.</param>
    /// <param name="output">[value_dim]</param>
    /// <param name="lse">In the base of the options, in single precision.</param>
    /// <param name="rounding">What is rounded at all.</param>
    public static void Row(
        ReferenceCall call, AttentionRow row, Span<float> output, out float lse, NaiveRounding rounding = NaiveRounding.Everything)
    {
        (ElementType storage, KeyValueScales? scales) = (call.Storage, call.Scales);
        ElementType narrow = StorageType.Of(storage).Arithmetic;
        ElementType arithmetic = rounding == NaiveRounding.Everything ? narrow : ElementType.Float32;
        ElementType queries = rounding == NaiveRounding.Storage ? ElementType.Float32 : narrow;
        int kvHead = call.KvHeadOf(row.Head);
        output.Clear();
        lse = float.NegativeInfinity;
        var rules = new ReferenceRules(call.Shape, call.Options, row.Batch, row.Query);
        if (!rules.IsPresent)
        {
            return;
        }

        float[] scores = Scores(
            call, rules, new StoredRows(call.Query, queries, 1f), new StoredRows(call.Key, storage, scales?.Key[kvHead] ?? 1f), arithmetic, row);
        float sink = call.Options.Sinks?[row.Head] ?? float.NegativeInfinity;
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
        var values = new StoredRows(call.Value, storage, scales?.Value[kvHead] ?? 1f);
        for (int j = 0; j < scores.Length; j++)
        {
            if (scores[j] != 0)
            {
                TensorPrimitives.MultiplyAdd(values.Read(row.Batch, j, kvHead), scores[j], output, output);
            }
        }

        Round(output, arithmetic);
        lse = (top + MathF.Log(whole)) / (call.Options.LseBase == LogarithmBase.Two ? MathF.Log(2) : 1);
    }

    private static float[] Scores(
        ReferenceCall call, ReferenceRules rules, StoredRows queries, StoredRows keys, ElementType arithmetic, AttentionRow row)
    {
        float[] scores = new float[call.Shape.KeyLength];
        Array.Fill(scores, float.NegativeInfinity);
        float[] queryRow = queries.Read(row.Batch, row.Query, row.Head).ToArray();
        float softcap = call.Options.Softcap;
        Span<float> score = stackalloc float[1];
        for (int j = 0; j < scores.Length; j++)
        {
            if (!rules.Sees(j))
            {
                continue;
            }

            score[0] = (float)call.Scale * TensorPrimitives.Dot(queryRow, keys.Read(row.Batch, j, call.KvHeadOf(row.Head)));
            Round(score, arithmetic);
            if (softcap > 0)
            {
                score[0] = softcap * MathF.Tanh(score[0] / softcap);
                Round(score, arithmetic);
            }

            score[0] += (float)rules.Bias(row.Head, j);
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
        private readonly TensorNumbers _rows = new(view);
        private readonly RowStorage _storage = new(view.Type, storage, (int)view.Shape[3]);
        private readonly byte[] _stored = new byte[storage.BytesFor(view.Shape[3])];
        private readonly float[] _numbers = new float[view.Shape[3]];

        public ReadOnlySpan<float> Read(int batch, int position, int head)
        {
            TensorPrimitives.Multiply(_storage.Store(_rows.Stored(batch, position, head), _stored, scale), scale, _numbers);
            return _numbers;
        }
    }
}

/// <summary>What <see cref="NaiveAttention"/> rounds to the storage type.</summary>
internal enum NaiveRounding
{
    /// <summary>Inputs, scores, weights and output.</summary>
    Everything,

    /// <summary>Query, keys and values; all else is single precision.</summary>
    Inputs,

    /// <summary>Keys and values; all else is single precision.</summary>
    Storage,
}
