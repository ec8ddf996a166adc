using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.RegularExpressions;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>The table of <c>compile_check</c> against the host's choice: what NVRTC is tried on is what devices will be asked to run.</summary>
public sealed partial class KernelInstanceTests
{
    // Bytes of shared memory that a block may have: sm_86 and 89 run what is compiled like sm_80 with less room.
    private static readonly Dictionary<int, int[]> _sharedLimits = new() { [80] = [166_912, 101_376], [90] = [232_448] };

    // Either side of every tile of heads and values, and of query rows.
    private static readonly int[] _dims = [1, 64, 65, 128, 129, 192, 256, 257, 384, 385, 512, 513, 576];
    private static readonly int[] _rows = [1, 16, 17, 32, 33, 127, 128];
    private static readonly bool[] _inKeys = [false, true];
    private static readonly ElementType[] _types = [ElementType.Float32, ElementType.Float16, ElementType.BFloat16, ElementType.Float8E4M3, ElementType.Int8];

    [Theory]
    [InlineData(80)]
    [InlineData(90)]
    public void The_table_lists_every_attend_instance_that_the_host_can_choose_and_no_other(int architecture)
    {
        string[] chosen = [.. _sharedLimits[architecture].SelectMany(Choices).Concat(_types.Select(type => PreciseKernel.For(type).Name)).Distinct().Order(StringComparer.Ordinal)];

        string[] listed = [.. Listed(architecture).Where(name => name.StartsWith("attend_", StringComparison.Ordinal)).Order(StringComparer.Ordinal)];

        Assert.Equal(listed.Distinct(), listed);
        Assert.True(
            chosen.SequenceEqual(listed),
            $"native/tests/registers.txt lacks\n{Lines(architecture, chosen.Except(listed))}\nand lists without need\n{Lines(architecture, listed.Except(chosen))}");
    }

    [Theory]
    [InlineData(80)]
    [InlineData(90)]
    public void The_table_lists_every_kernel_of_every_source(int architecture)
    {
        string[] listed = [.. Listed(architecture).Select(name => name.Split('<')[0]).Distinct().Order(StringComparer.Ordinal)];

        string[] defined = [.. Directory.GetFiles(Path.Combine(EmulatedCuda.Root, "native", "kernels"), "*.cu")
            .SelectMany(file => KernelName().Matches(File.ReadAllText(file)).Select(match => match.Groups[1].Value)).Order(StringComparer.Ordinal)];

        Assert.Equal(defined, listed);
    }

    [Theory]
    [InlineData(127, 128, "attend_tensor<bfloat16, 128, 128, false, 4, 64, 2>")]
    [InlineData(128, 128, "attend_prefill<bfloat16, 128, 128, 64, false>")]
    [InlineData(128, 576, "attend_tensor<bfloat16, 128, 576, false, 1, 32, 2>")]
    public void A_whole_tile_of_rows_is_a_prefill_where_its_output_stays_in_registers(int rows, int valueDim, string expected)
    {
        string chosen = AttendKernel.For(new AttentionShape(1, rows, 1, 1, 1, 128, valueDim), ElementType.BFloat16, false, rows, false, _sharedLimits[90][0]).Name;

        Assert.Equal(expected, chosen);
    }

    [Fact]
    public void States_of_single_pages_never_come_from_the_prefill_kernel()
    {
        string chosen = AttendKernel.ForPages(new AttentionShape(1, 5000, 1, 1, 1, 128, 128), ElementType.BFloat16, false, 5000, _sharedLimits[90][0]).Name;

        Assert.Equal("attend_tensor<bfloat16, 128, 128, false, 4, 64, 2, true>", chosen);
    }

    private static IEnumerable<string> Choices(int sharedLimit) =>
        from headDim in _dims
        from valueDim in _dims
        from type in _types
        from inKeys in _inKeys
        where !inKeys || valueDim <= headDim
        from rows in _rows
        let shape = new AttentionShape(1, rows, 1, 1, 1, headDim, valueDim)
        from name in new[]
        {
            AttendKernel.ForPages(shape, type, inKeys, rows, sharedLimit).Name,
            AttendKernel.For(shape, type, inKeys, rows, false, sharedLimit).Name,
            AttendKernel.For(shape, type, inKeys, rows, true, sharedLimit).Name,
        }
        select name;

    // "80 118 0 attend_tensor<...>": architecture, registers, bytes spilled, instance.
    private static IEnumerable<string> Listed(int architecture) =>
        File.ReadLines(Path.Combine(EmulatedCuda.Root, "native", "tests", "registers.txt"))
            .Where(line => line.StartsWith($"{architecture} ", StringComparison.Ordinal)).Select(line => line.Split(' ', 4)[3]);

    private static string Lines(int architecture, IEnumerable<string> names) => string.Join('\n', names.Select(name => $"{architecture} 255 0 {name}"));

    [GeneratedRegex(@"__global__[^;{]*?\s(?!__launch_bounds__)(\w+)\(")]
    private static partial Regex KernelName();
}
