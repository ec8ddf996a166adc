using System;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cpu.Scheduling;
using TreeAttention.Devices.Cpu.Vectors;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>CPU devices of each vector width, on whatever processor: where 512 bits are missing they are emulated.</summary>
internal static class CpuWidths
{
    internal static readonly int[] All = [256, 512];

    public static TheoryData<int> Bits => [.. All];

    internal static CpuDevice Create(int bits, int threads) => bits switch
    {
        256 => new(threads, (count, account) => new TileWorkers<Width256, Vector256<float>>(count, account)),
        512 => new(threads, (count, account) => new TileWorkers<Width512, Vector512<float>>(count, account)),
        _ => throw new ArgumentOutOfRangeException(nameof(bits)),
    };
}
