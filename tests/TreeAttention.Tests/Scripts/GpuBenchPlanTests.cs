using System;
using System.Globalization;
using System.IO;
using System.Linq;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Scripts;

/// <summary>What the GPU benchmark would measure, and that both sides attend to the same numbers.</summary>
public sealed class GpuBenchPlanTests
{
    private static readonly string _scripts = Path.Combine(EmulatedCuda.Root, "scripts", "gpu");

    public static TheoryData<string> Cells =>
    [
        "decode 8k x1 32/8/128 bf16", "decode 1024k x1 32/8/128 bf16", "decode 8k x64 32/8/128 bf16", "decode 64k x1 64/8/128 bf16",
        "decode 128k x1 32/32/128 bf16", "decode 1024k x1 128/1/576 bf16", "decode 512k x1 32/8/128 f16", "prefill 2k x1 32/8/128 bf16",
        "prefill 32k x1 32/8/128 bf16", "combine in-process, 8 ranks, batch 1", "combine MPI, 4 ranks, batch 16", "combine NCCL, 1 rank, batch 1",
    ];

    [Theory, MemberData(nameof(Cells))]
    public void The_plan_has(string cell) => Assert.Contains(DryRun(), line => line.StartsWith(cell + ": ", StringComparison.Ordinal));

    [Fact]
    public void A_dry_run_names_each_cell_once_and_measures_nothing()
    {
        string[] names = [.. DryRun().Select(line => line.Split(": ")[0])];

        Assert.Equal(names.Distinct(), names);
        Assert.False(Directory.Exists(Path.Combine(_scripts, "results")));
    }

    [Fact]
    public void Parts_and_matches_narrow_the_plan_and_unknown_parts_are_refused()
    {
        string[] prefill = DryRun("prefill", "--match", "f16");

        Assert.Equal(["prefill 8k x1 32/8/128 bf16", "prefill 8k x1 32/8/128 f16"],
            DryRun("prefill", "--match", "8k x1 32/8").Select(line => line.Split(": ")[0]));
        Assert.All(prefill, line => Assert.Contains("f16: ", line, StringComparison.Ordinal));
        Assert.Contains("no part is called decoding", Run(2, "decoding", "--dry-run").Errors, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(2, 0, 5, 3, 4, 7)] // keys of several heads and batch rows, an odd dimension
    [InlineData(1, 1, 3, 2, 6, 16)] // queries
    [InlineData(3, 2, 900, 1, 40, 64)] // values, far into the context
    public void PyTorch_gets_the_numbers_that_the_program_makes(int which, int batch, int first, int heads, int count, int dim)
    {
        int length = first + count;
        var shape = new AttentionShape(batch + 1, which == 1 ? length : 1, which == 1 ? 1 : length, heads, heads, dim, dim);
        using var tensors = new SyntheticTensors(shape, 20261121);
        for (int position = 0; which != 1 && position < length; position++)
        {
            tensors.FillKey(position);
        }

        string[] printed = Numpy.Run(
            "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1]); import numpy, synthetic\n"
            + "numbers = synthetic.numbers(numpy, *map(int, sys.argv[2:]))[-1]\n"
            + "print(*numbers.view(numpy.uint32).reshape(-1))",
            [Path.Combine(_scripts, "bench"), .. new[] { which, batch + 1, heads, first, count, dim }.Select(number => number.ToString(CultureInfo.InvariantCulture))])
            .Split((char[])[' ', '\n'], StringSplitOptions.RemoveEmptyEntries);

        uint[] made = [.. printed.Select(word => uint.Parse(word, CultureInfo.InvariantCulture))];
        Assert.Equal(Made(which == 1 ? tensors.Query : which == 2 ? tensors.Key : tensors.Value, batch, heads, first, count, dim), made);
    }

    private static unsafe uint[] Made(TensorView tensor, int batch, int heads, int first, int count, int dim) =>
    [
        .. from head in Enumerable.Range(0, heads)
           from position in Enumerable.Range(first, count)
           from i in Enumerable.Range(0, dim)
           select ((uint*)tensor.Address)[tensor.OffsetOf([batch, position, head, i])],
    ];

    private static string[] DryRun(params string[] arguments) => Run(0, [.. arguments, "--dry-run"]).Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);

    private static ShellRun Run(int code, params string[] arguments)
    {
        Assert.SkipUnless(File.Exists("/usr/bin/python3"), "python3 is not installed: it drives the benchmark.");
        return ShellRun.Of(_scripts, ["./gpu-bench.sh", .. arguments]).Exits(code);
    }
}
