using System;
using System.Globalization;
using System.Linq;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>One random call of <c>treeattn verify</c>: small, with awkward sizes and options, the same on every rank for a seed.</summary>
internal sealed record VerifyCase(
    int Seed, AttentionProblem Problem, ElementType StorageType, KeyValueScales? Scales, ShardLayout Layout)
{
    private static readonly int[] _keyLengths = [0, 1, 2, 3, 7, 33, 100, 511, 513, 1100];
    private static readonly int[] _headDims = [1, 15, 16, 64, 80, 96, 128, 192];
    private static readonly int[] _groups = [1, 2, 3, 4, 8, 16];

    private static readonly ShardLayout[] _layouts =
        [ShardLayout.Contiguous, ShardLayout.Zigzag, ShardLayout.Striped, ShardLayout.Cyclic(16), ShardLayout.Lanes];

    private static readonly ElementType[] _types =
        [ElementType.Float32, ElementType.Float16, ElementType.BFloat16, ElementType.Float8E4M3];

    /// <summary>What a failure is reported with.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture, $"seed {Seed}, {Problem.Shape}, {StorageType.ShortName()}, {Layout}, {Describe(Problem.Options)}");

    /// <summary>The call of a seed. Sizes, types and layouts cycle, so that few seeds cover them all.</summary>
    public static VerifyCase Create(int seed)
    {
        var random = new Random(seed);
        int kvHeads = random.Next(1, 3);
        int headDim = _headDims[seed % _headDims.Length];
        int valueDim = random.Next(4) == 0 ? random.Next(1, 100) : headDim;
        var shape = new AttentionShape(
            random.Next(1, 3), random.Next(1, 6), _keyLengths[seed % _keyLengths.Length],
            kvHeads * _groups[seed % _groups.Length], kvHeads, headDim, valueDim);
        var problem = new AttentionProblem(shape, OptionsFor(shape, random));

        // Four types and eight head dimensions: a step further in each round, or each type would meet two dimensions only.
        ElementType type = _types[(seed + (seed / _headDims.Length)) % _types.Length];
        KeyValueScales? scales = type == ElementType.Float8E4M3 ? new KeyValueScales(Scale(kvHeads, random), Scale(kvHeads, random)) : null;
        return new VerifyCase(seed, problem, type, scales, _layouts[seed % _layouts.Length]);
    }

    private static AttentionOptions OptionsFor(AttentionShape shape, Random random)
    {
        bool Chance(int of) => random.Next(of) == 0;
        int tail = random.Next(1, 6);
        int queries = shape.Batch * shape.QueryLength;
        bool depthFirst = Chance(6);
        return new AttentionOptions
        {
            Causal = Chance(2),
            WindowLeft = Chance(4) ? random.Next(0, 200) : -1,
            WindowRight = Chance(8) ? random.Next(0, 10) : -1,
            Softcap = Chance(4) ? 5f : 0f,
            Scale = Chance(5) ? 0.37f : null,
            AlibiSlopes = Chance(4) ? Floats(shape.QueryHeads, random) : null,
            Sinks = Chance(4) ? Floats(shape.QueryHeads, random) : null,
            KeyLengths = Chance(4) ? Integers(shape.Batch, shape.KeyLength, random) : null,
            QueryLengths = Chance(6) ? Integers(shape.Batch, shape.QueryLength, random) : null,
            DfsStart = depthFirst ? Integers(queries, 3, random) : null,
            DfsEnd = depthFirst ? Integers(shape.Batch * shape.KeyLength, 3, random) : null,
            TailMask = Chance(5) ? [.. Integers(queries * tail, 1, random).Select(value => value == 1)] : null,
            TailMaskLength = tail,
            TailBias = Chance(5) ? Floats(queries * tail, random) : null,
            TailBiasLength = tail,
        };
    }

    // Made-up elements lie within ±√3, so none is too large for the smallest scale.
    private static float[] Scale(int kvHeads, Random random) => [.. Enumerable.Range(0, kvHeads).Select(_ => MathF.ScaleB(1 + random.NextSingle(), -random.Next(1, 8)))];

    private static float[] Floats(int count, Random random) => [.. Enumerable.Range(0, count).Select(_ => random.NextSingle())];

    private static int[] Integers(int count, int most, Random random) => [.. Enumerable.Range(0, count).Select(_ => random.Next(most + 1))];

    private static string Describe(AttentionOptions options) => string.Join(
        ' ', Settlement.Of(options).Where(setting => setting.Value is not ("none" or "default" or "False" or "-1,-1" or "0"))
            .Select(setting => $"{setting.Key} {setting.Value}"));
}
