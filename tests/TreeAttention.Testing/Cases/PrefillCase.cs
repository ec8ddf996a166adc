using System;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;

namespace TreeAttention.Testing.Cases;

/// <summary>Prompts for a cache and what attention over each of them is: small, awkward, reproducible.</summary>
internal sealed record PrefillCase(string Name)
{
    private const int Seed = 4711;

    /// <summary>[rows] tokens of each prompt.</summary>
    public int[] Lengths { get; init; } = [600, 0, 37, 520];

    /// <summary>[rows] left padding.</summary>
    public int[] Padding { get; init; } = [0, 5, 3, 0];

    public int QueryHeads { get; init; } = 4;

    public int KvHeads { get; init; } = 2;

    public int HeadDim { get; init; } = 12;

    public int ValueDim { get; init; } = 7;

    public bool ValuesInKeys { get; init; }

    public int Layers { get; init; } = 1;

    public ElementType Type { get; init; } = ElementType.Float32;

    public KeyValueScales? Scales { get; init; }

    public RotaryOptions? Rotary { get; init; }

    public AttentionOptions Attention { get; init; } = new();

    public CacheOptions Cache => new()
    {
        Layers = Layers,
        Rows = Lengths.Length,
        KvHeads = KvHeads,
        HeadDim = HeadDim,
        ValueDim = ValueDim,
        ValuesInKeys = ValuesInKeys,
        MaxLength = Lengths.Max() + 4,
        Type = Type,
        Scales = Scales,
        Rotary = Rotary,
    };

    public PrefillOptions Options(PrefillMethod method) => new() { Method = method, Lengths = Lengths, QueryHeads = QueryHeads, Attention = Attention, Chunk = 256 };

    /// <summary>Numbers of a token: tensor 1 the query, 2 the key, 3 the value.</summary>
    public float[] Of(int tensor, int layer, int row, int index)
    {
        int floats = tensor switch { 1 => QueryHeads * HeadDim, 2 => KvHeads * HeadDim, _ => ValuesInKeys ? 0 : KvHeads * ValueDim };
        var random = new Random((((((Seed * 31) + tensor) * 31) + layer) * 1009) + (row * 65537) + index);
        return [.. Enumerable.Range(0, floats).Select(_ => (float)((random.NextDouble() * 4) - 2))];
    }

    /// <summary>Numbers of some tokens, one after the other.</summary>
    public float[] Of(int tensor, int layer, params System.Collections.Generic.IEnumerable<PromptToken> tokens) =>
        [.. tokens.SelectMany(token => Of(tensor, layer, token.Row, token.Index))];

    /// <summary>The tokens of a row.</summary>
    public static PromptToken[] Row(int row, int first, int count) => [.. Enumerable.Range(first, count).Select(index => new PromptToken(row, index))];

    /// <summary>An empty cache, padded.</summary>
    public ShardedKvCache NewCache(RankContext context)
    {
        var cache = new ShardedKvCache(context, Cache);
        for (int row = 0; row < Padding.Length; row++)
        {
            cache.PadLeft(row, Padding[row]);
        }

        return cache;
    }

    /// <summary>Runs a prefill of a layer.</summary>
    public (float[] Output, float[] Lse) Run(PrefillStep step, int layer = 0)
    {
        float[] output = new float[step.Tokens.Count * QueryHeads * ValueDim];
        float[] lse = new float[step.Tokens.Count * QueryHeads];
        step.Run(layer, Of(1, layer, step.Tokens), Of(2, layer, step.Tokens), Of(3, layer, step.Tokens), output, lse);
        return (output, lse);
    }

    /// <summary>Appends all prompts as tokens.</summary>
    public void Append(ShardedKvCache cache, int layer = 0)
    {
        for (int row = 0; row < Lengths.Length; row++)
        {
            PromptToken[] tokens = Row(row, 0, Lengths[row]);
            cache.Append(layer, [row], Of(2, layer, tokens), Of(3, layer, tokens));
        }
    }

    /// <summary>Holds whole outputs of a row against float64: [length, heads, value_dim] and [heads, length].</summary>
    public VerificationReport Check(int layer, int row, float[] output, float[] lse)
    {
        int length = Lengths[row];
        PromptToken[] tokens = Row(row, 0, length);
        var shape = new AttentionShape(1, length, length, QueryHeads, KvHeads, HeadDim, ValueDim);
        float[]? slopes = Attention.AlibiSlopes is { } all && all.Length > QueryHeads ? all[(row * QueryHeads)..((row + 1) * QueryHeads)] : Attention.AlibiSlopes;
        var problem = new AttentionProblem(shape, Attention with { Causal = true, AlibiSlopes = slopes });
        using HostTensor query = Tensor("query", QueryHeads, HeadDim, Of(1, layer, tokens));
        using HostTensor key = Tensor("key", KvHeads, HeadDim, Of(2, layer, tokens));
        using HostTensor? apart = ValuesInKeys ? null : Tensor("value", KvHeads, ValueDim, Of(3, layer, tokens));
        TensorView value = apart?.View ?? key.View.TruncateLastAxis("value", ValueDim);
        if (Rotary is null)
        {
            return Agreement.Check(new ReferenceCall(problem.Shape, problem.Options, query.View, key.View, value, Type, Scales), output, lse, Seed);
        }

        using HostMemory turnedQuery = ReferenceRotary.Rotate(query.View, Rotary, index => Padding[row] + index, out TensorView queries);
        using HostMemory turnedKey = ReferenceRotary.Rotate(key.View, Rotary, index => Padding[row] + index, out TensorView keys);
        return Agreement.Check(new ReferenceCall(problem.Shape, problem.Options, queries, keys, value, Type, Scales), output, lse, Seed);

        HostTensor Tensor(string name, int heads, int dim, float[] numbers) =>
            new(name, ElementType.Float32, [1, length, heads, dim], [.. numbers.Select(number => (double)number)]);
    }

    public override string ToString() => Name;
}
