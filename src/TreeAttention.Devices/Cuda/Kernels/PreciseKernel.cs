using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
