using System;
using System.Collections.Concurrent;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;

namespace TreeAttention.Testing.Cases;

/// <summary>Rows of tokens that enter a cache, and the queries of the step that comes last: small, awkward, reproducible.</summary>
/// <remarks>What is expected is computed by the reference over keys and queries that this class rotates itself, in double.</remarks>
internal sealed class DecodeCase
{
    private readonly ConcurrentDictionary<int, float[]> _numbers = []; // shared by the ranks' threads

    public DecodeCase(string name) => Name = name;

    public string Name { get; }

    /// <summary>[rows] tokens before the last step.</summary>
    public int[] Before { get; init; } = [700, 1300];

    /// <summary>[rows] left padding.</summary>
    public int[] Padding { get; init; } = [0, 0];

    public int NewTokens { get; init; } = 1;

    public int QueryLength { get; init; } = 1;

    public int QueryHeads { get; init; } = 6;

    public int KvHeads { get; init; } = 2;

    public int HeadDim { get; init; } = 16;

    public int ValueDim { get; init; } = 16;

    public ElementType Type { get; init; } = ElementType.Float32;

    public KeyValueScales? Scales { get; init; }

    public RotaryOptions? Rotary { get; init; }

    public AttentionOptions Options { get; init; } = new();

    public float Size { get; init; } = 2;

    public float ValueSize { get; init; } = 2;

    public int Rows => Before.Length;

    public int Longest => Before.Max() + NewTokens;

    public AttentionShape Shape => new(Rows, QueryLength, Longest, QueryHeads, KvHeads, HeadDim, ValueDim);

    public CacheOptions CacheOptions => new()
    {
        Rows = Rows,
        KvHeads = KvHeads,
        HeadDim = HeadDim,
        ValueDim = ValueDim,
        MaxLength = Longest,
        Type = Type,
        Scales = Scales,
        Rotary = Rotary,
    };

    public DecodeOptions DecodeOptions(ReductionKind reduction = ReductionKind.Auto, AttentionAlgorithm algorithm = AttentionAlgorithm.Tree) => new()
    {
        QueryLength = QueryLength,
        QueryHeads = QueryHeads,
        Attention = Options,
        Plan = new AttentionPlan(algorithm, reduction, QueryPlacement.Replicated),
    };

    public float[] Query => Numbers(1, (long)Rows * QueryLength * QueryHeads * HeadDim);

    /// <summary>[tokens, kv_heads, head_dim] of a row.</summary>
    public float[] KeyOf(int row) => Numbers(100 + row, (long)Longest * KvHeads * HeadDim);

    /// <summary>[tokens, kv_heads, value_dim] of a row.</summary>
    public float[] ValueOf(int row) => Numbers(200 + row, (long)Longest * KvHeads * ValueDim, ValueSize);

    /// <summary>Keys of some tokens of a row, as they are appended.</summary>
    public ReadOnlySpan<float> Keys(int row, int first, int count) =>
        KeyOf(row).AsSpan(first * KvHeads * HeadDim, count * KvHeads * HeadDim);

    /// <summary>Values of some tokens of a row.</summary>
    public ReadOnlySpan<float> Values(int row, int first, int count) =>
        ValueOf(row).AsSpan(first * KvHeads * ValueDim, count * KvHeads * ValueDim);

    /// <summary>The new tokens of the last step: [rows, tokens, kv_heads, dim].</summary>
    public (float[] Key, float[] Value) LastTokens() => (
        [.. Enumerable.Range(0, Rows).SelectMany(row => Keys(row, Before[row], NewTokens).ToArray())],
        [.. Enumerable.Range(0, Rows).SelectMany(row => Values(row, Before[row], NewTokens).ToArray())]);

    /// <summary>Fills the rows up to the last step, a chunk of tokens after the other.</summary>
    public void Fill(ShardedKvCache cache, int chunk)
    {
        for (int row = 0; row < Rows; row++)
        {
            cache.PadLeft(row, Padding[row]);
            for (int first = 0; first < Before[row]; first += chunk)
            {
                int count = Math.Min(chunk, Before[row] - first);
                cache.Append(0, [row], Keys(row, first, count), Values(row, first, count));
            }
        }
    }

    /// <summary>Runs the last step on a filled cache.</summary>
    public (float[] Output, float[] Lse) RunLast(DecodeStep step)
    {
        float[] output = new float[Rows * QueryLength * QueryHeads * ValueDim];
        float[] lse = new float[Rows * QueryHeads * QueryLength];
        (float[] key, float[] value) = LastTokens();
        step.Run(0, Query, key, value, output, lse);
        return (output, lse);
    }

    /// <summary>Holds a result of the last step against the reference.</summary>
    public VerificationReport Check(float[] output, float[] lse)
    {
        AttentionOptions options = Options with { KeyLengths = [.. Before.Select(count => count + NewTokens)] };
        using HostTensor query = RotatedQuery();
        using HostTensor key = Rotary is null ? Stack(KeyOf, HeadDim) : RotatedKey();
        using HostTensor value = Stack(ValueOf, ValueDim);
        return Agreement.Check(new ReferenceCall(Shape, options, query.View, key.View, value.View, Type, Scales), output, lse, 7);
    }

    public override string ToString() => Name;

    private HostTensor Stack(Func<int, float[]> rows, int dim) => new(
        "stack", ElementType.Float32, [Rows, Longest, KvHeads, dim], [.. Enumerable.Range(0, Rows).SelectMany(rows).Select(x => (double)x)]);

    private HostTensor RotatedKey() => new(
        "key", ElementType.Float64, [Rows, Longest, KvHeads, HeadDim],
        [.. Enumerable.Range(0, Rows).SelectMany(row => Rotated(KeyOf(row), KvHeads, token => Padding[row] + token))]);

    private HostTensor RotatedQuery()
    {
        bool isAligned = Options.AreQueriesAligned;
        double[] rotated = Rotated(Query, QueryHeads, token =>
        {
            (int row, int i) = Math.DivRem(token, QueryLength);
            return Padding[row] + Before[row] + (isAligned ? i : 0);
        });
        return new HostTensor(
            "query", Rotary is null ? ElementType.Float32 : ElementType.Float64, [Rows, QueryLength, QueryHeads, HeadDim], rotated);
    }

    private double[] Rotated(float[] numbers, int heads, Func<int, int> positionOf)
    {
        double[] result = [.. numbers.Select(x => (double)x)];
        double[] frequencies = Rotary?.Frequencies() ?? [];
        for (int place = 0; place < result.Length / HeadDim; place++)
        {
            for (int pair = 0; pair < frequencies.Length; pair++)
            {
                int first = (place * HeadDim) + (Rotary!.Interleaved ? 2 * pair : pair);
                int second = (place * HeadDim) + (Rotary.Interleaved ? (2 * pair) + 1 : pair + frequencies.Length);
                double angle = positionOf(place / heads) * frequencies[pair];
                (double a, double b) = (result[first], result[second]);
                result[first] = (a * Math.Cos(angle)) - (b * Math.Sin(angle));
                result[second] = (b * Math.Cos(angle)) + (a * Math.Sin(angle));
            }
        }

        return result;
    }

    private float[] Numbers(int which, long count, float? size = null) => _numbers.GetOrAdd(which, _ => MakeNumbers(which, count, size ?? Size));

    private float[] MakeNumbers(int which, long count, float size)
    {
        var random = new Random((Name.Sum(letter => letter) * 1000) + which); // a seed that a failing test's name tells
        float[] numbers = new float[count];
        for (int i = 0; i < numbers.Length; i++)
        {
            numbers[i] = (float)((random.NextDouble() - 0.5) * size);
        }

        return numbers;
    }
}
