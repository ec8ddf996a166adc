using System;
using System.Linq;
using TreeAttention.Devices.Cuda;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>The measurements of what a GPU can do, on the emulation: the work is done, whatever the time says.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class GpuCeilingsTests
{
    [Fact]
    public void The_kernel_that_reads_reads_every_word_once()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        long words = CeilingWork.OfEmulation.Bytes / 16;
        using var ceilings = (GpuCeilings)device.CreateCeilings(ElementType.BFloat16, CeilingWork.OfEmulation.Bytes);

        double rate = ceilings.MeasureRead();

        // Memory holds ones, four 32-bit words of them in 16 bytes; sums wrap.
        uint expected = unchecked((uint)(words * 4 * 0x01010101));
        Assert.Equal(expected, ceilings.WordsRead().Aggregate(0u, (sum, word) => unchecked(sum + word)));
        Assert.True(double.IsFinite(rate) && rate > 0);
    }

    [Theory]
    [InlineData(ElementType.Float32)]
    [InlineData(ElementType.Float16)]
    [InlineData(ElementType.BFloat16)]
    public void Each_storage_type_has_its_own_multiplications(ElementType type)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        using var ceilings = (GpuCeilings)device.CreateCeilings(type, CeilingWork.OfEmulation.Bytes);

        double multiplications = ceilings.MeasureMultiplyAdd();
        double? copy = ceilings.MeasureCopy();

        Assert.True(multiplications > 0 && copy > 0);
        float[] sums = [.. ceilings.WordsRead().Take(256).Select(BitConverter.UInt32BitsToSingle)];
        Assert.All(sums, sum => Assert.True(float.IsFinite(sum)));
        Assert.True(sums.Distinct().Count() > 8); // of lanes with numbers of their own
    }

    [Fact]
    public void The_memory_goes_back_to_the_device()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        long before = device.Memory.Bytes;

        device.CreateCeilings(ElementType.Float32, CeilingWork.OfEmulation.Bytes).Dispose();

        Assert.Equal(before, device.Memory.Bytes);
    }
}
