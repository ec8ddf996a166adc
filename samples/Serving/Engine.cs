using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention;

/// <summary>One rank's part of the model: the same weights and the same calls on every rank, its own share of the keys.</summary>
internal sealed class Engine : IDisposable
{
    /// <summary>Requests that are served at a time.</summary>
    public const int Slots = 8;

    // The same bits whoever else is in the batch, on any number of ranks.
    private static readonly AttentionPlan _plan = new(AttentionAlgorithm.Tree, ReductionKind.Lanes);

    private readonly AttentionGroup _group;
    private readonly Token[] _last; // [rows] what each row made last
    private DecodeStep? _step;
    private int[] _rows = []; // of the step

    public Engine(AttentionGroup group, int slots)
    {
        _group = group;
        _last = new Token[slots + Prompts.Prefixes.Count];
        Cache = group.CreateCache(new CacheOptions
        {
            Layers = Model.Layers, Rows = _last.Length, KvHeads = Model.KvHeads, HeadDim = Model.Dim, ValueDim = Model.Dim,
            MaxLength = Prompts.LongestRequest, Rotary = new RotaryOptions(Model.Dim), MemoryBytes = (12L << 20) / group.Size, // less than all rows at their longest
        });
        for (int prefix = 0; prefix < Prompts.Prefixes.Count; prefix++)
        {
            Read(slots + prefix, Prompts.Prefixes[prefix]);
        }
    }

    public ShardedKvCache Cache { get; }

    /// <summary>Does what rank 0 planned; gives the token of each row that was admitted or decoded, in this order.</summary>
    public IReadOnlyList<Token> Run(Plan plan)
    {
        foreach (int row in plan.Released)
        {
            Cache.Release(row);
        }

        foreach (Admission admission in plan.Admitted)
        {
            if (admission.Prefix is { } prefix)
            {
                Cache.Fork(_last.Length - Prompts.Prefixes.Count + prefix, admission.Row, Prompts.Prefixes[prefix].Length);
            }

            _last[admission.Row] = Read(admission.Row, admission.Tokens);
        }

        if (plan.Decoding.Length > 0)
        {
            Decode(plan.Decoding);
        }

        return [.. plan.Admitted.Select(admission => _last[admission.Row]), .. plan.Decoding.Select(row => _last[row])];
    }

    /// <summary>The answer to a prompt that is alone in the cache.</summary>
    public List<Token> Answer(int[] prompt, int count)
    {
        Cache.Release(0);
        _last[0] = Read(0, prompt);
        List<Token> tokens = [_last[0]];
        while (tokens.Count < count)
        {
            Decode([0]);
            tokens.Add(_last[0]);
        }

        return tokens;
    }

    public void Dispose()
    {
        _step?.Dispose();
        Cache.Dispose();
    }

    // A prompt, or the rest of one whose prefix the row has.
    private Token Read(int row, int[] tokens)
    {
        using PrefillStep prefill = _group.CreatePrefill(Cache, new PrefillOptions
        {
            Method = PrefillMethod.Chunked, Lengths = [tokens.Length], Rows = [row], QueryHeads = Model.Heads, Plan = _plan,
        });
        float[] hidden = Forward(tokens, (layer, query, key, value, output, lse) => _group.Prefill(prefill, layer, query, key, value, output, lse));
        return Choose(hidden.AsSpan(^Model.Width..));
    }

    // One token of each of some rows. A step has fixed rows: it is made again when requests came or went.
    private void Decode(int[] rows)
    {
        if (_step is null || !rows.SequenceEqual(_rows))
        {
            _step?.Dispose();
            _step = _group.CreateStep(Cache, new DecodeOptions
            {
                Rows = rows, QueryHeads = Model.Heads, Attention = new AttentionOptions { Causal = true }, Plan = _plan,
            });
            _rows = rows;
        }

        float[] hidden = Forward(
            [.. rows.Select(row => _last[row].Id)], (layer, query, key, value, output, lse) => _group.Decode(_step, layer, query, key, value, output, lse));
        for (int i = 0; i < rows.Length; i++)
        {
            _last[rows[i]] = Choose(hidden.AsSpan(i * Model.Width, Model.Width));
        }
    }

    // [tokens, width] through all layers. Each token is computed by itself, so that its bits do not depend on the others of a batch.
    private static float[] Forward(int[] tokens, Attention attention)
    {
        float[] hidden = [.. tokens.SelectMany(token => Model.Embedding.Row(token).ToArray())];
        float[] output = new float[hidden.Length];
        float[] lse = new float[tokens.Length * Model.Heads];
        for (int layer = 0; layer < Model.Layers; layer++)
        {
            attention(
                layer, Model.Query[layer].Times(hidden), Model.Key[layer].Times(hidden), Model.Value[layer].Times(hidden), output, lse);
            for (int i = 0; i < hidden.Length; i++)
            {
                hidden[i] += 8 * output[i];
            }
        }

        return hidden;
    }

    private static Token Choose(Span<float> hidden)
    {
        float[] scores = Model.Embedding.Times(hidden);
        int best = 0;
        for (int id = 1; id < scores.Length; id++)
        {
            best = scores[id] > scores[best] ? id : best;
        }

        ulong bits = 14_695_981_039_346_656_037; // FNV-1a
        foreach (byte part in MemoryMarshal.AsBytes(hidden))
        {
            bits = (bits ^ part) * 1_099_511_628_211;
        }

        return new Token(best, bits);
    }

    private delegate void Attention(int layer, float[] query, float[] key, float[] value, float[] output, float[] lse);
}

/// <summary>Stands for a model: layers of attention alone, with weights that every rank makes alike.</summary>
internal static class Model
{
    public const int Layers = 2, Heads = 4, KvHeads = 2, Dim = 32, Vocabulary = 256, Width = Heads * Dim;

    public static readonly Matrix Embedding = new(1, Vocabulary, Width, 1);

    public static readonly Matrix[] Query = [.. Enumerable.Range(0, Layers).Select(layer => new Matrix(100 + layer, Width, Width, 0.5f))];

    public static readonly Matrix[] Key = [.. Enumerable.Range(0, Layers).Select(layer => new Matrix(200 + layer, KvHeads * Dim, Width, 0.5f))];

    public static readonly Matrix[] Value = [.. Enumerable.Range(0, Layers).Select(layer => new Matrix(300 + layer, KvHeads * Dim, Width, 0.2f))];
}

/// <summary>[rows, width] random numbers.</summary>
internal sealed class Matrix
{
    private readonly float[] _numbers;
    private readonly int _width;

    public Matrix(int seed, int rows, int width, float size)
    {
        var random = new Random(seed);
        _width = width;
        _numbers = [.. Enumerable.Range(0, rows * width).Select(_ => size * ((2 * random.NextSingle()) - 1))];
    }

    public ReadOnlySpan<float> Row(int row) => _numbers.AsSpan(row * _width, _width);

    /// <summary>[tokens, rows]: each row's product with each token [tokens, width].</summary>
    public float[] Times(ReadOnlySpan<float> tokens)
    {
        int rows = _numbers.Length / _width;
        float[] products = new float[tokens.Length / _width * rows];
        for (int i = 0; i < products.Length; i++)
        {
            products[i] = Dot(tokens.Slice(i / rows * _width, _width), Row(i % rows));
        }

        return products;
    }

    private static float Dot(ReadOnlySpan<float> first, ReadOnlySpan<float> second)
    {
        float sum = 0;
        for (int i = 0; i < first.Length; i++)
        {
            sum += first[i] * second[i];
        }

        return sum;
    }
}
