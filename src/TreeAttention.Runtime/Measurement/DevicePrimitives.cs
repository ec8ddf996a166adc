using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices;

namespace TreeAttention.Runtime;

/// <summary>The operations that the kernels of a rank's device are built of, each tried alone.</summary>
public static class DevicePrimitives
{
    /// <summary>Each primitive of this rank's GPU and what differs from the golden data, null where nothing does; none on a CPU.</summary>
    public static IReadOnlyList<(string Primitive, string? Difference)> Check(AttentionGroup group) =>
        group.Context.Device is CudaDevice cuda
            ? [.. cuda.CheckPrimitives().Select(check => (check.Primitive, check.Difference))]
            : [];
}
