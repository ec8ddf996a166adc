using System;
using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>Runs alone, because it counts what the whole process allocates, worker threads included.</summary>
[Collection(nameof(CpuAllocationTests))]
[CollectionDefinition(nameof(CpuAllocationTests), DisableParallelization = true)]
public sealed class CpuAllocationTests
{
    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void A_step_allocates_nothing_on_any_thread(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (CpuCase inputs in new[]
        {
            new CpuCase { Shape = new(1, 1, 9000, 8, 2, 32, 32) },
            new CpuCase { Shape = new(1, 64, 1000, 8, 2, 32, 32), Options = new() { Causal = true, AlibiSlopes = [1, 2, 3, 4, 5, 6, 7, 8] } },
            new CpuCase { Shape = new(1, 1, 1000, 8, 2, 32, 32), Options = new() { Scale = 1000 } },
        })
        {
            using var call = new CpuCall(inputs.Fill(), device, 0);
            call.Attend();

            // The least of a few: the runtime's own threads may allocate now and then.
            long least = Enumerable.Range(0, 5).Min(_ => AllocatedBy(call));

            Assert.Equal(0, least);
        }
    }

    private static long AllocatedBy(CpuCall call)
    {
        long before = GC.GetTotalAllocatedBytes(true);
        for (int step = 0; step < 20; step++)
        {
            call.Attend();
        }

        return GC.GetTotalAllocatedBytes(true) - before;
    }
}
