using System;
using System.Linq;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>What a CPU device does besides attention.</summary>
public sealed class CpuDeviceTests
{
    [Theory, InlineData(0), InlineData(100), InlineData(5L << 20)]
    public void Memory_is_zeroed_aligned_counted_and_given_back(long bytes)
    {
        using var device = new CpuDevice(1);

        Region region = device.Allocate(bytes, ElementType.Byte);

        Assert.Equal(0, region.Address % HostMemory.Margin);
        Assert.Equal(-1, region.AsSpan<byte>().IndexOfAnyExcept((byte)0));
        Assert.Equal(bytes, device.Memory.Bytes);
        device.Free(region);
        Assert.Equal(0, device.Memory.Bytes);
        Assert.Throws<ArgumentException>(() => device.Free(region));
    }

    [Fact]
    public void More_memory_than_there_is_is_refused_before_it_is_touched()
    {
        using var device = new CpuDevice(1);

        FaultException fault = Assert.Throws<FaultException>(() => device.Allocate(1L << 46, ElementType.Byte));

        Assert.Equal(FaultCode.OutOfMemory, fault.Code);
        Assert.Contains("70,368,744,177,664", fault.Message, StringComparison.Ordinal);
    }

    [Theory, InlineData(1f), InlineData(0.125f)]
    public void Weighing_and_unweighing_by_any_unit_gives_the_state_back(float unit)
    {
        using var device = new CpuDevice(1);
        CpuCase inputs = new CpuCase { Shape = new(1, 3, 50, 4, 2, 16, 11), Options = new() { KeyLengths = [50], QueryLengths = [2] } }.Fill();
        using var call = new CpuCall(inputs, device, 0);
        call.Attend();
        PartialResult before = call.Read();
        Region top = device.Allocate(12 * sizeof(float), ElementType.Float32);
        Region numerator = device.Allocate(12 * 11 * sizeof(float), ElementType.Float32);
        Region denominator = device.Allocate(12 * sizeof(float), ElementType.Float32);
        before.Max.Select(max => max + 2).ToArray().CopyTo(top.AsSpan<float>());

        device.Weigh(call.Into, top, unit, numerator, denominator);
        call.Into.Output.Fill(float.NaN);
        device.Unweigh(top, unit, numerator, denominator, call.Into);

        PartialResult after = call.Read();
        Assert.InRange(after.ErrorAgainst(before), 0, 1e-6);
        Assert.Equal(before.Max.Select(max => max + 2), after.Max);
    }

    [Fact]
    public void Exponentials_are_as_exact_as_they_say()
    {
        foreach (float x in Enumerable.Range(0, 20_000).Select(n => -n / 230f))
        {
            float fast = VectorMath<Width256, Vector256<float>>.Exp(Vector256.Create(x))[0];
            double precise = DoubleExp.Exp(Vector256.Create((double)x * 8))[0];

            Assert.Equal(1, fast / Math.Exp(x), 2e-7);
            Assert.Equal(1, precise / Math.Exp((double)x * 8), 1e-14);
        }

        Assert.Equal(0f, VectorMath<Width256, Vector256<float>>.Exp(Vector256.Create(float.NegativeInfinity))[0]);
        Assert.Equal(1f, VectorMath<Width256, Vector256<float>>.Exp(Vector256.Create(0f))[0]);
        Assert.Equal(0d, DoubleExp.Exp(Vector256.Create(double.NegativeInfinity))[0]);
        Assert.True(double.IsNaN(DoubleExp.Exp(Vector256.Create(double.NaN))[0]));
    }

    [Fact]
    public void Settled_scores_keep_their_order_and_fit_fp32()
    {
        double[] scores = [.. Enumerable.Range(0, 400).Select(n => Math.Pow(2, n) * 1.3), 2e120];

        double[] settled = Array.ConvertAll(scores, ScoreRange.Settle);

        Assert.Equal(settled.Order(), settled);
        Assert.Equal(settled.Distinct().Count(), settled.Length);
        Assert.True(float.IsFinite((float)settled[^1]));
        Assert.Equal(-settled[300], ScoreRange.Settle(-scores[300]));
        Assert.Equal(scores[29], settled[29]);
    }

    [Fact]
    public void Ceilings_are_positive_and_do_not_need_a_warm_up()
    {
        using var ceilings = new MachineCeilings(2, 64L << 20);

        Assert.True(ceilings.MeasureRead() > 0.1);
        Assert.True(ceilings.MeasureMultiplyAdd() > 0.1);
    }
}
