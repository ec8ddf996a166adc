using System;
using System.IO;
using System.Linq;
using TreeAttention.Communication.InProcess;
using TreeAttention.Distributed.Ports;
using TreeAttention.Runtime.Groups;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary><c>--device auto</c>: the GPU where every rank has one, else the CPU, with a word about it where a GPU could be expected.</summary>
[Collection("mpi")]
public sealed class DeviceChoiceTests
{
    private const string FallBack = "treeattn: --device auto computes on the CPU. ";

    private static readonly AttentionShape _shape = new(1, 2, 40, 2, 1, 16, 16);

    public static TheoryData<string, string, string> Obstacles => new()
    {
        { "TREEATTN_CUDA_LIBRARY=/no/libcuda_emulated.so", "", "No emulated GPU: /no/libcuda_emulated.so was not found. Build it with scripts/build.sh --all." },
        { "TREEATTN_EMULATION_DEVICES=0", "", "No CUDA device: the driver" },
        { "TREEATTN_EMULATION_DEVICES=1", "--ranks 2", "This machine has 1 GPU for 2 ranks" },
        { "TREEATTN_EMULATION_CAPABILITY=75", "", "CUDA device 0 (Emulated device 0) is of compute capability 7.5, but the kernels need 8.0 or newer." },
    };

    [Theory, InlineData(1, ""), InlineData(2, ""), InlineData(9, "--oversubscribe-gpus")]
    public void The_GPU_computes_where_there_is_one_for_each_rank_or_ranks_may_share(int ranks, string option)
    {
        TreeattnResult result = Attend($"--ranks {ranks} {option}", EmulatedCuda.Variables).Exits(0);

        Assert.Equal("cuda", result.Json.GetProperty("device").GetString());
        Assert.Empty(result.Errors);
    }

    [Theory, MemberData(nameof(Obstacles))]
    public void The_CPU_computes_where_a_GPU_cannot_and_one_line_says_why(string variable, string option, string why)
    {
        string[] pair = variable.Split('=');

        TreeattnResult result = Attend(option, [.. EmulatedCuda.Variables, (pair[0], pair[1])]).Exits(0);

        Assert.Equal("cpu", result.Json.GetProperty("device").GetString());
        Assert.StartsWith(FallBack + why, Assert.Single(Lines(result)), StringComparison.Ordinal);
        Attend($"{option} --device cuda", [.. EmulatedCuda.Variables, (pair[0], pair[1])]).Exits(69);
    }

    [Fact]
    public void A_machine_without_any_GPU_is_not_told_so()
    {
        Assert.SkipWhen(Directory.Exists("/proc/driver/nvidia"), "This machine has an NVIDIA driver.");

        TreeattnResult result = Attend("--ranks 2", []).Exits(0);

        Assert.Equal("cpu", result.Json.GetProperty("device").GetString());
        Assert.Empty(result.Errors);
    }

    [Theory, InlineData("openmpi", "8", "cuda"), InlineData("mpich", "1", "cpu")]
    public void Processes_choose_together_and_rank_0_tells(string mpi, string devices, string device)
    {
        using var files = new CliFiles();
        string[] arguments = ["attend", .. files.Tensors(_shape), "--output", files.At("output.npy"), "--json", "--threads", "1"];

        using var process = TreeattnProcess.StartRanks(mpi, 3, arguments, [.. EmulatedCuda.Variables, ("TREEATTN_EMULATION_DEVICES", devices)]);
        TreeattnResult result = process.Wait().Exits(0);

        Assert.Equal(device, result.Json.GetProperty("device").GetString());
        string[] told = [.. Lines(result).Where(line => line.Contains("--device auto", StringComparison.Ordinal))];
        Assert.Equal(device == "cpu" ? [FallBack + "rank 0: This machine has 1 GPU for 3 ranks"] : [], told.Select(line => line.Split(", and")[0]));
    }

    [Theory, InlineData(-1, "cuda"), InlineData(0, "cpu"), InlineData(2, "cpu")]
    public void One_rank_that_cannot_use_a_GPU_keeps_all_from_it(int without, string kind)
    {
        EmulatedCuda.RequireLibrary();
        var environment = new ProcessEnvironment
        {
            Cuda = "emulated",
            CudaLibrary = EmulatedCuda.Library,
            CacheFolder = EmulatedCuda.CacheFolder,
        };
        using var group = InProcessGroup.Create(3);
        string[] kinds = new string[3];

        group.Run(rank =>
        {
            // Nine ranks want nine GPUs, and the emulation has eight.
            var devices = DeviceSource.Agree(new GroupOptions(), environment, rank == without ? 9 : 1, group.Controls[rank]);
            using IDevice device = devices.Create(threads: 1, rank);
            kinds[rank] = device.Name;
        });

        Assert.Equal(Enumerable.Repeat(kind, 3), kinds);
    }

    [Fact]
    public void An_environment_that_contradicts_itself_is_2_whatever_the_device() =>
        Attend("", [("TREEATTN_CUDA", "imagined")]).Exits(2).Says("TREEATTN_CUDA is 'imagined'");

    [Fact]
    public void The_doctor_tells_what_the_choice_would_be()
    {
        using var there = TreeattnProcess.Start(["doctor"], EmulatedCuda.Variables);
        using var tooOld = TreeattnProcess.Start(["doctor"], [.. EmulatedCuda.Variables, ("TREEATTN_EMULATION_CAPABILITY", "75")]);
        using var contradiction = TreeattnProcess.Start(["doctor"], [("TREEATTN_CUDA", "imagined")]);

        Assert.Matches(@"ok +--device auto +the GPU that the CPU emulates \(TREEATTN_CUDA\), of which this machine has 8", there.Wait().Exits(0).Output);
        Assert.Matches(@"--device auto +the CPU\. CUDA device 0 \(Emulated device 0\) is of compute capability 7\.5", tooOld.Wait().Exits(0).Output);
        Assert.Matches("missing +--device auto +TREEATTN_CUDA is 'imagined'", contradiction.Wait().Exits(0).Output);
    }

    private static string[] Lines(TreeattnResult result) => result.Errors.Split('\n', StringSplitOptions.RemoveEmptyEntries);

    private static TreeattnResult Attend(string options, (string Name, string Value)[] variables)
    {
        using var files = new CliFiles();
        string[] arguments =
        [
            "attend", .. files.Tensors(_shape), "--output", files.At("output.npy"), "--json", "--threads", "1",
            .. options.Split(' ', StringSplitOptions.RemoveEmptyEntries),
        ];
        using var process = TreeattnProcess.Start(arguments, variables);
        return process.Wait();
    }
}
