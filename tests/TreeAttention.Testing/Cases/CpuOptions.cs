using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Testing.Cases;

/// <summary>Each option of attention, and some together, for a shape.</summary>
internal static class CpuOptions
{
    private static readonly Dictionary<string, Func<AttentionShape, AttentionOptions>> _options = new()
    {
        ["none"] = _ => new(),
        ["scale 0"] = _ => new() { Scale = 0 },
        ["negative scale"] = _ => new() { Scale = -0.2f },
        ["causal"] = _ => new() { Causal = true },
        ["window"] = _ => new() { WindowLeft = 100, WindowRight = 3 },
        ["window of one key"] = _ => new() { WindowLeft = 0, WindowRight = 0 },
        ["chunks"] = shape => new()
        {
            LocalChunk = 37,
            KeyLengths = Lengths(shape.Batch, shape.KeyLength),
            KeyStarts = [.. Lengths(shape.Batch, shape.KeyLength).Select(length => length / 3)],
            AlibiSlopes = Ramp(shape.QueryHeads, 0.4f),
        },
        ["softcap"] = _ => new() { Softcap = 1.5f, Causal = true },
        ["large softcap"] = _ => new() { Softcap = 50 },
        ["alibi"] = shape => new() { AlibiSlopes = Ramp(shape.QueryHeads, 0.4f) },
        ["alibi per batch row, negative too"] = shape => new() { AlibiSlopes = Ramp(shape.Batch * shape.QueryHeads, -0.02f) },
        ["steep alibi"] = shape => new() { AlibiSlopes = Ramp(shape.QueryHeads, 900f), Causal = true },
        ["key lengths"] = shape => new() { KeyLengths = Lengths(shape.Batch, shape.KeyLength), Causal = true },
        ["query lengths"] = shape => new() { QueryLengths = Lengths(shape.Batch, shape.QueryLength), Causal = true },
        ["ragged with alibi far away"] = shape => new()
        {
            KeyLengths = Lengths(shape.Batch, shape.KeyLength),
            AlibiSlopes = Ramp(shape.QueryHeads, 3f),
            WindowRight = 2,
        },
        ["left padding"] = shape => new()
        {
            KeyStarts = [.. Lengths(shape.Batch, shape.KeyLength).Select(length => length / 2)],
            AlibiSlopes = Ramp(shape.QueryHeads, 0.1f),
            Causal = true,
            WindowLeft = 300,
        },
        ["depths"] = shape => Depths(shape) with { AlibiSlopes = Ramp(shape.QueryHeads, 0.4f) },
        ["depths in a window"] = shape => Depths(shape) with
        {
            KeyLengths = Lengths(shape.Batch, shape.KeyLength),
            QueryLengths = [.. Lengths(shape.Batch, shape.QueryLength).Select((length, row) => row == 2 ? shape.QueryLength : length)],
            Causal = true,
            WindowLeft = 1,
            WindowRight = 0,
            AlibiSlopes = Ramp(shape.Batch * shape.QueryHeads, -0.02f),
        },
        ["depths in chunks"] = shape => Depths(shape) with { LocalChunk = 2, KeyStarts = [.. Enumerable.Repeat(1, shape.Batch)] },
        ["depth-first"] = DepthFirst,
        ["tail mask"] = shape => TailMask(shape, Math.Min(70, shape.KeyLength)),
        ["tail mask longer than rows"] = shape => TailMask(shape, 130) with { KeyLengths = Lengths(shape.Batch, shape.KeyLength) },
        ["tail bias"] = shape => TailBias(shape, 65, shape.Batch, 2),
        ["shared tail bias over all keys"] = shape => TailBias(shape, shape.KeyLength, 1, 1),
        ["large tail bias"] = shape => TailBias(shape, 40, 1, 1e6f),
        ["everything"] = shape => DepthFirst(shape) with
        {
            Softcap = 20,
            AlibiSlopes = Ramp(shape.QueryHeads, 0.1f),
            WindowLeft = 300,
            TailMask = TailMask(shape, 33).TailMask,
            TailMaskLength = 33,
            TailBias = TailBias(shape, 12, 1, 1).TailBias,
            TailBiasLength = 12,
        },
    };

    private static readonly Dictionary<string, Func<AttentionShape, AttentionOptions>> _packed = new()
    {
        ["packed"] = _ => new(),
        ["packed, causal with alibi of each sequence"] = shape => new() { Causal = true, AlibiSlopes = Ramp(4 * shape.QueryHeads, -0.02f) },
        ["packed, window with alibi"] = shape => new() { WindowLeft = 20, WindowRight = 3, AlibiSlopes = Ramp(shape.QueryHeads, 0.4f) },
        ["packed chunks"] = _ => new() { LocalChunk = 7 },
        ["packed depth-first"] = shape => DepthFirst(shape) with { Softcap = 20 },
        ["packed with tails"] = shape => TailMask(shape, 70) with { TailBias = TailBias(shape, 9, 1, 2).TailBias, TailBiasLength = 9 },
    };

    internal static IEnumerable<string> Names => _options.Keys;

    /// <summary>Options of packed sequences, for shapes of one batch row.</summary>
    internal static IEnumerable<string> PackedNames => _packed.Keys;

    /// <summary>Four sequences: one with more keys than queries, one empty, one without keys, one with the rest, which has fewer keys than queries where it must.</summary>
    internal static AttentionOptions OfPacked(string name, AttentionShape shape)
    {
        (int queries, int keys) = (shape.QueryLength, shape.KeyLength);
        return _packed[name](shape) with
        {
            PackedQueries = [0, queries / 3, queries / 3, queries / 2, queries],
            PackedKeys = [0, keys * 4 / 5, keys * 4 / 5, keys * 4 / 5, keys],
        };
    }

    internal static AttentionOptions Of(string name, AttentionShape shape) => _options[name](shape);

    private static float[] Ramp(int count, float last) => [.. Enumerable.Range(1, count).Select(i => last * i / count)];

    // Full, nearly empty, empty.
    private static int[] Lengths(int batch, int most) => [.. Enumerable.Range(0, batch).Select(row => row switch { 0 => most, 1 => most / 3, _ => 0 })];

    private static AttentionOptions DepthFirst(AttentionShape shape)
    {
        var random = new Random(3);
        return new()
        {
            DfsStart = [.. Enumerable.Range(0, shape.Batch * shape.QueryLength).Select(_ => random.Next(100))],
            DfsEnd = [.. Enumerable.Range(0, shape.Batch * shape.KeyLength).Select(_ => random.Next(100))],
        };
    }

    private static AttentionOptions Depths(AttentionShape shape)
    {
        var random = new Random(6);
        return new() { QueryDepths = [.. Enumerable.Range(0, shape.Batch * shape.QueryLength).Select(i => random.Next((i % shape.QueryLength) + 1))] };
    }

    private static AttentionOptions TailMask(AttentionShape shape, int length)
    {
        var random = new Random(4);
        return new()
        {
            TailMask = [.. Enumerable.Range(0, shape.Batch * shape.QueryLength * length).Select(_ => random.Next(2) == 0)],
            TailMaskLength = length,
        };
    }

    private static AttentionOptions TailBias(AttentionShape shape, int length, int batch, float size)
    {
        var random = new Random(5);
        return new()
        {
            TailBias =
            [
                .. Enumerable.Range(0, batch * shape.QueryLength * length)
                    .Select(_ => random.Next(4) == 0 ? float.NegativeInfinity : size * (random.NextSingle() - 0.5f)),
            ],
            TailBiasLength = length,
        };
    }
}
