using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Devices.Cuda.Kernels;

/// <summary>An instance of an attend kernel: which one fits a call, how many rows a block takes, how much shared memory it needs.</summary>
/// <param name="Program">What is compiled.</param>
/// <param name="RowsPerTile">Query rows of a block.</param>
/// <param name="Threads">Threads of a block.</param>
/// <param name="SharedBytes">Dynamic shared memory of a block.</param>
internal sealed record AttendKernel(KernelProgram Program, int RowsPerTile, int Threads, int SharedBytes)
{
    /// <summary>Query rows of a KV head from which on a call is a prefill: a whole tile of that kernel.</summary>
    internal const int PrefillRows = 128;

    private const int DecodeThreads = 128;
    private const int TileRows = 16;
    private static readonly int[] _tensorTiles = [64, 128, 256, 576];

    /// <summary>Keys that a block of the tensor-core kernel takes at a time.</summary>
    internal int KeysPerTile { get; private init; }

    /// <summary>The name in messages.</summary>
    internal string Name => Program.Expressions[0];

    /// <summary>The instance for a call.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="type">Storage type.</param>
    /// <param name="valuesInKeys">Values are the first value_dim elements of the keys.</param>
    /// <param name="rows">Query rows of a KV head.</param>
    /// <param name="hasScoreRules">Scores are capped or biased, or single keys hidden.</param>
    /// <param name="sharedLimit">Most shared memory of a block on this device.</param>
    internal static AttendKernel For(AttentionShape shape, ElementType type, bool valuesInKeys, int rows, bool hasScoreRules, int sharedLimit) =>
        (rows < PrefillRows || type == ElementType.Float32 ? null : Prefill(shape, type, hasScoreRules, sharedLimit))
        ?? (type == ElementType.Float32 ? null : Tensor(shape, type, valuesInKeys, RowWarps(shape, rows), sharedLimit))
        ?? Plain(shape, type);

    /// <summary>The instance for the states of single pages. Whatever the number of rows, its tiles have as many keys, and so its bits are the same.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="type">Storage type.</param>
    /// <param name="valuesInKeys">Values are the first value_dim elements of the keys.</param>
    /// <param name="rows">Query rows of a KV head.</param>
    /// <param name="sharedLimit">Most shared memory of a block on this device.</param>
    internal static AttendKernel ForPages(AttentionShape shape, ElementType type, bool valuesInKeys, int rows, int sharedLimit) =>
        (type == ElementType.Float32 ? null : TensorOfPages(shape, type, valuesInKeys, rows, sharedLimit)) ?? Plain(shape, type);

    /// <summary>What kernels call a storage type.</summary>
    /// <exception cref="FaultException">They have no such type (69).</exception>
    internal static string ElementName(ElementType type) => StorageType.Of(type).KernelName ?? throw new FaultException(
        FaultCode.Unavailable, $"The GPU does not attend to keys stored as {type.ShortName()}. Use {Setting.StorageType} {StorageType.KernelNames("or")}.");

    private static AttendKernel? Prefill(AttentionShape shape, ElementType type, bool hasScoreRules, int sharedLimit)
    {
        const int WidestValues = 256;
        const int BytesPerRow = 24;
        int headTile = SmallestTile(shape.HeadDim);
        int valueTile = SmallestTile(shape.ValueDim);
        if (headTile > WidestValues || valueTile > WidestValues)
        {
            return null;
        }

        int keys = PrefillKeysFor(type, headTile, valueTile, hasScoreRules);
        int shared = (2 * PrefillRows * headTile) + (int)type.BytesFor(keys * (headTile + valueTile)) + (BytesPerRow * PrefillRows) + 512;
        string rules = hasScoreRules ? "true" : "false";
        var program = new KernelProgram(
            "attend_prefill.cu", [$"attend_prefill<{ElementName(type)}, {headTile}, {valueTile}, {keys}, {rules}>"], true);
        return shared <= sharedLimit ? new AttendKernel(program, PrefillRows, valueTile > 128 ? 256 : 128, shared) : null;
    }

    private static int RowWarps(AttentionShape shape, int rows)
    {
        int valueTile = SmallestTile(shape.ValueDim);
        return valueTile > 256 || rows <= TileRows ? 1 : valueTile > 128 || rows <= 2 * TileRows ? 2 : 4;
    }

    // The instance of the most rows has the fewest keys at a time, and the least room: what fits it fits all.
    private static AttendKernel? TensorOfPages(AttentionShape shape, ElementType type, bool valuesInKeys, int rows, int sharedLimit)
    {
        // Four warps of rows would leave wide keys half a tile, and widened ones too few registers.
        int widestOfFour = StorageType.Of(type).BitsPerElement < 16 ? 64 : 128;
        int most = Math.Max(SmallestTile(shape.HeadDim), SmallestTile(shape.ValueDim)) > widestOfFour ? 2 : 4;
        int widest = Math.Min(RowWarps(shape, int.MaxValue), most);
        AttendKernel? ofMost = Tensor(shape, type, valuesInKeys, widest, sharedLimit, isPages: true);
        return ofMost is null ? null : Tensor(shape, type, valuesInKeys, Math.Min(RowWarps(shape, rows), most), sharedLimit, ofMost.KeysPerTile, true);
    }

    private static AttendKernel? Tensor(
        AttentionShape shape, ElementType type, bool valuesInKeys, int rowWarps, int sharedLimit, int keysPerTile = 0, bool isPages = false)
    {
        int headTile = SmallestTile(shape.HeadDim);
        int valueTile = SmallestTile(shape.ValueDim);
        foreach ((int keys, int stages) in PipelinesFor(Math.Max(headTile, valueTile), rowWarps))
        {
            if (keysPerTile > 0 && keys != keysPerTile)
            {
                continue;
            }

            int tileRows = TileRows * rowWarps;
            int tile = (int)type.BytesFor(keys * (headTile + (valuesInKeys ? 0 : valueTile)));
            int shared = (stages * tile) + (2 * tileRows * (headTile + keys)) + 768;
            if (shared <= sharedLimit)
            {
                string element = ElementName(type);
                string inKeys = valuesInKeys ? "true" : "false";
                string quarters = isPages && rowWarps > 1 ? ", true" : ""; // a block of one warp of rows has them anyway
                var program = new KernelProgram(
                    "attend_tensor.cu",
                    [$"attend_tensor<{element}, {headTile}, {valueTile}, {inKeys}, {rowWarps}, {keys}, {stages}{quarters}>"], true);
                return new AttendKernel(program, tileRows, DecodeThreads, shared) { KeysPerTile = keys };
            }
        }

        return null;
    }

    // Few rows read each key once and wait for memory: more tiles in flight. Many rows compute: more room for their queries.
    // Instances of large tiles keep their registers only with few keys at a time.
    private static IEnumerable<(int Keys, int Stages)> PipelinesFor(int largestTile, int rowWarps) => (largestTile, rowWarps) switch
    {
        ( > 256, _) or ( > 128, 4) => [(32, 2)],
        (_, 1) => [(64, 3), (64, 2), (32, 2)],
        _ => [(64, 2), (32, 2)],
    };

    // As many keys at a time as registers hold beside the outputs of a warp's rows, with what single keys need where there are
    // rules, and what 8-bit elements are widened to.
    private static int PrefillKeysFor(ElementType type, int headTile, int valueTile, bool hasScoreRules) => valueTile switch
    {
        <= 64 => headTile > 128 ? 32 : 64,
        <= 128 => headTile > 128 || hasScoreRules ? 32 : 64,
        _ => hasScoreRules || StorageType.Of(type).BitsPerElement < 16 ? 32 : 64,
    };

    private static AttendKernel Plain(AttentionShape shape, ElementType type)
    {
        const int ValueStep = 128;
        int valueTile = (shape.ValueDim + ValueStep - 1) / ValueStep * ValueStep;
        string element = ElementName(type);
        int shared = (sizeof(float) * ((TileRows * shape.HeadDim) + (32 * 65) + (TileRows * 32))) + 128;
        return new AttendKernel(new KernelProgram("attend_plain.cu", [$"attend_plain<{element}, {valueTile}>"], true), TileRows, DecodeThreads, shared);
    }

    private static int SmallestTile(int dim) => Array.Find(_tensorTiles, tile => tile >= dim);
}

/// <summary>The kernel that computes rows again whose numbers fp32 does not hold: a warp per row and split.</summary>
/// <param name="Program">What is compiled.</param>
internal sealed record PreciseKernel(KernelProgram Program)
{
    /// <summary>Threads of a block.</summary>
    internal const int Threads = 128;

    /// <summary>Query rows of a block.</summary>
    internal const int RowsPerTile = 4;

    private const int TileKeys = 32;

    /// <summary>The name in messages.</summary>
    internal string Name => Program.Expressions[0];

    /// <summary>The instance for a storage type.</summary>
    internal static PreciseKernel For(ElementType type) =>
        new(new KernelProgram("attend_precise.cu", [$"attend_precise<{AttendKernel.ElementName(type)}>"], true));

    /// <summary>Dynamic shared memory of a block: each row's query and the weights of a tile, in double precision.</summary>
    internal static int SharedBytesFor(int headDim) => sizeof(double) * RowsPerTile * (headDim + TileKeys);
}
