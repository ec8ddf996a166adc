using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Tests on the emulated GPU: compilers and kernels load every core, so nothing that is held to seconds runs beside them.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class EmulatedGpu
{
    /// <summary>What tests of the collection name.</summary>
    public const string Name = "cuda";
}
