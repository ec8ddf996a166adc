using System;
using System.Diagnostics;
using System.IO;
using System.Linq;
using TreeAttention.Devices.Cuda;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>The operations that kernels are built of, each alone, against golden data that no device has made.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class PrimitiveProbeTests
{
    [Fact]
    public void The_emulated_gpu_does_every_primitive_as_it_is_defined()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();

        PrimitiveCheck[] checks = [.. device.CheckPrimitives()];

        Assert.Equal(Probe.All.Count, checks.Length);
        Assert.All(checks, check => Assert.Null(check.Difference));
    }

    [Fact]
    public void One_wrong_bit_of_an_exact_primitive_is_a_difference_that_names_it()
    {
        Probe probe = Probe.All.Single(probe => probe.Name == "probe_multiply_add<bfloat16>");
        uint[] answer = [.. probe.Words];
        answer[77] ^= 1;

        string? difference = probe.Difference(answer);

        Assert.NotNull(difference);
        Assert.Contains("probe_multiply_add<bfloat16>: 1 of 128 words", difference, StringComparison.Ordinal);
        Assert.Contains("word 77", difference, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(100, 2, true)] // within 2^-21
    [InlineData(100, 64, false)]
    [InlineData(249, 1, false)] // 2^-127 flushes to 0, and nothing else is near that
    public void Approximate_powers_may_differ_in_the_last_bits_and_zeros_may_not(int word, uint units, bool agrees)
    {
        Probe probe = Probe.All.Single(probe => probe.Name == "probe_exp2");
        uint[] answer = [.. probe.Words];
        answer[word] += units;

        Assert.Equal(agrees, probe.Difference(answer) is null);
    }

    [Fact]
    public void An_answer_of_nothing_is_a_difference_for_every_primitive() =>
        Assert.All(Probe.All, probe => Assert.NotNull(probe.Difference([.. Enumerable.Repeat(uint.MaxValue, probe.Words.Length)])));

    [Fact]
    public void The_committed_golden_data_are_those_that_the_definitions_give()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/python3"), "python3 is not installed: the golden data cannot be computed again.");

        using var script = Process.Start("/usr/bin/python3", [Path.Combine(EmulatedCuda.Root, "native/tests/make_probes_golden.py"), "--check"]);
        script.WaitForExit();

        Assert.Equal(0, script.ExitCode);
    }
}
