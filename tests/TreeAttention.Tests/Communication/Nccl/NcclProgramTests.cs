using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Net;
using System.Net.Sockets;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary><c>--transport nccl</c> over the emulation, alone and under both launchers: right results, refusals, faults.</summary>
[Collection("mpi")]
public sealed class NcclProgramTests
{
    private static readonly string[] _verify = ["verify", "--transport", "nccl", "--cases", "1", "--threads", "1"];

    public static TheoryData<string, string[], int, string[]> Refusals => new()
    {
        { "TREEATTN_NCCL_LIBRARY=/nowhere/libnccl.so.2", [], 69, ["/nowhere/libnccl.so.2 was not found", "TREEATTN_NCCL_LIBRARY"] },
        { "TREEATTN_EMULATION_NCCL_VERSION=21405", [], 69, ["is NCCL 2.14.5, but 2.18.1 is the oldest"] },
        { "TREEATTN_EMULATION_DEVICES=1", ["--oversubscribe-gpus"], 69, ["ranks 0, 1 compute on the same GPU", "NCCL_HOSTID"] },
        { "TREEATTN_EMULATION_DEVICES=8", ["--device", "cpu"], 2, ["--transport nccl connects GPUs, but --device cpu"] },
    };

    [Theory, InlineData("openmpi", 3), InlineData("mpich", 2)]
    public void Verify_passes_with_MPI_for_the_launch_and_NCCL_for_the_data(string mpi, int ranks)
    {
        TreeattnResult result = RunRanks(mpi, ranks, _verify).Exits(0);

        Assert.Contains($"{ranks} ranks under", result.Output, StringComparison.Ordinal);
        Assert.Contains(", NCCL 2.22.3 (", result.Output, StringComparison.Ordinal);
        Assert.Matches(@"^[1-9]\d* passed, 0 failed$", result.Output.TrimEnd('\n').Split('\n').Last());
    }

    [Theory, InlineData("openmpi", "allgather"), InlineData("mpich", "three-allreduce")]
    public void Attend_says_what_it_ran_on_and_sends_what_the_host_would(string mpi, string reduction)
    {
        using var files = new CliFiles();
        string[] arguments =
        [
            "attend", .. files.Tensors(new AttentionShape(2, 3, 700, 4, 2, 16, 16)), "--output", files.At("output.npy"), "--transport", "nccl",
            "--device", "cuda", "--reduction", reduction, "--causal", "--verify", "--json", "--repeat", "4", // from the second on it is a graph
        ];

        TreeattnResult result = RunRanks(mpi, 3, arguments).Exits(0);

        Assert.Equal(("nccl", "cuda", 3), (
            result.Json.GetProperty("transport").GetString(), result.Json.GetProperty("device").GetString(), result.Json.GetProperty("ranks").GetInt32()));
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt64());
        Assert.Equal(24 * 18 * sizeof(float), result.Json.GetProperty("bytes_sent").GetInt64());
        Assert.Equal(reduction == "allgather" ? 1 : 3, result.Json.GetProperty("collectives").GetInt64());
    }

    [Theory, InlineData("openmpi", "ring"), InlineData("mpich", "tree")]
    public void A_step_that_is_repeated_as_a_graph_ends_in_the_bits_of_one_that_is_not(string mpi, string algorithm)
    {
        using var files = new CliFiles();
        string[] arguments =
        [
            "attend", .. files.Tensors(new AttentionShape(1, 3, 900, 4, 2, 16, 16)), "--transport", "nccl", "--algorithm", algorithm, "--causal", "--warmup", "0",
        ];

        RunRanks(mpi, 3, [.. arguments, "--output", files.At("once.npy"), "--repeat", "1"]).Exits(0);
        RunRanks(mpi, 3, [.. arguments, "--output", files.At("again.npy"), "--repeat", "4"]).Exits(0);

        Assert.Equal(File.ReadAllBytes(files.At("once.npy")), File.ReadAllBytes(files.At("again.npy")));
    }

    [Fact]
    public void An_asynchronous_error_in_a_graph_ends_all_with_203()
    {
        using var files = new CliFiles();
        string[] arguments =
        [
            "attend", .. files.Tensors(new AttentionShape(1, 3, 300, 2, 2, 16, 16)), "--output", files.At("output.npy"), "--transport", "nccl",
            "--reduction", "allgather", "--repeat", "100",
        ];

        using var process = TreeattnProcess.StartRanks("openmpi", 3, arguments, [.. EmulatedCuda.Variables, ("TREEATTN_EMULATION_NCCL_FAULT", "1:50:3")]);
        TreeattnResult result = process.Wait().Exits(203);

        Assert.Contains("failed in NCCL with ncclInternalError", result.Errors, StringComparison.Ordinal);
        Assert.False(File.Exists(files.At("output.npy")));
        Assert.Empty(process.Survivors());
    }

    [Fact]
    public void Device_memory_is_handed_to_an_MPI_that_can_use_it()
    {
        // The answer is pretended; an emulated GPU's memory is the host's, so MPI reaches it.
        string[] arguments = ["verify", "--device", "cuda", "--cases", "1", "--threads", "1"];

        using var direct = TreeattnProcess.StartRanks("openmpi", 2, arguments, [.. EmulatedCuda.Variables, ("TREEATTN_MPI_CUDA", "direct")]);
        TreeattnResult handed = direct.Wait().Exits(0);
        using var wrong = TreeattnProcess.StartRanks("mpich", 2, arguments, [.. EmulatedCuda.Variables, ("TREEATTN_MPI_CUDA", "maybe")]);
        wrong.Wait().Exits(2).Says("TREEATTN_MPI_CUDA is 'maybe'");

        Assert.Contains("device memory handed to MPI", handed.Output, StringComparison.Ordinal);
    }

    [Theory, MemberData(nameof(Refusals))]
    public void What_cannot_work_is_refused_in_one_line(string variable, string[] arguments, int code, string[] words)
    {
        string[] pair = variable.Split('=');

        using var alone = TreeattnProcess.Start([.. _verify, "--ranks", "2", .. arguments], [.. EmulatedCuda.Variables, (pair[0], pair[1])]);
        alone.Wait().Exits(code).Says(words);
        using var ranks = TreeattnProcess.StartRanks("mpich", 2, [.. _verify, .. arguments], [.. EmulatedCuda.Variables, (pair[0], pair[1])]);
        ranks.Wait().Exits(code).Says(words);
    }

    [Fact]
    public void Ranks_share_a_GPU_where_NCCL_is_told_that_they_may()
    {
        using var ranks = TreeattnProcess.StartRanks(
            "mpich", 2, [.. _verify, "--oversubscribe-gpus"], [.. EmulatedCuda.Variables, ("TREEATTN_EMULATION_DEVICES", "1"), ("NCCL_MULTI_RANK_GPU_ENABLE", "1")]);

        ranks.Wait().Exits(0);
    }

    [Theory, InlineData("one", "two", 0), InlineData("one", "one", 69)]
    public void Ranks_share_a_GPU_where_each_calls_its_machine_by_another_name(string first, string second, int code)
    {
        TreeattnResult[] results = RunAtRendezvous(
            2, rank => [.. _verify, "--oversubscribe-gpus"],
            rank => [("TREEATTN_EMULATION_DEVICES", "1"), ("NCCL_HOSTID", rank == 0 ? first : second)]);

        Assert.All(results, result => result.Exits(code));
        Assert.Equal(code == 69, results[0].Errors.Contains("ranks 0, 1 compute on the same GPU (one,", StringComparison.Ordinal));
    }

    [Theory, InlineData("openmpi"), InlineData("mpich"), InlineData("alone")]
    public void An_asynchronous_error_ends_all_with_203(string launcher)
    {
        (string, string)[] planted = [.. EmulatedCuda.Variables, ("TREEATTN_EMULATION_NCCL_FAULT", "1:7:3")];

        using TreeattnProcess process = launcher == "alone"
            ? TreeattnProcess.Start([.. _verify, "--ranks", "3"], planted)
            : TreeattnProcess.StartRanks(launcher, 3, _verify, planted);
        TreeattnResult result = process.Wait().Exits(203);

        Assert.Contains("Rank 1 of 3", result.Errors, StringComparison.Ordinal);
        Assert.Contains("failed in NCCL with ncclInternalError", result.Errors, StringComparison.Ordinal);
        Assert.Empty(process.Survivors());
    }

    [Theory, InlineData("openmpi", "KILL", 0), InlineData("mpich", "STOP", 201)]
    public void A_rank_that_is_killed_or_stopped_ends_the_job(string mpi, string signal, int code)
    {
        string[] arguments = ["bench", "--transport", "nccl", "-b", "64", "-n", "1000000", "-c", "0", "--algorithm", "tree", "--reduction", "allgather"];
        using var process = TreeattnProcess.StartRanks(mpi, 2, [.. arguments, "--stall-timeout", "2", "--threads", "1"], EmulatedCuda.Variables);
        int[] ranks = process.Ranks(2);
        System.Threading.Thread.Sleep(3000); // into the runs

        ProcessTree.Signal(signal, ranks[1]);
        TreeattnResult result = process.Wait();

        Assert.True(code == 0 ? result.ExitCode != 0 : result.ExitCode == code, $"{result.ExitCode}\n{result.Errors}");
        Assert.Empty(process.Survivors());
    }

    [Fact]
    public void Processes_that_no_MPI_started_meet_by_TCP_and_work_alike()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 2, 300, 2, 1, 16, 16));

        TreeattnResult[] results = RunAtRendezvous(
            2, rank => ["attend", .. tensors, "--output", files.At("output.npy"), "--transport", "nccl", "--verify", "--json", "--reduction", "one-shot"]);

        Assert.Equal(("nccl", 2, 0L), (
            results[0].Exits(0).Json.GetProperty("transport").GetString(), results[0].Json.GetProperty("ranks").GetInt32(),
            results[0].Json.GetProperty("wrong").GetInt64()));
        Assert.Empty(results[1].Exits(0).Output);
    }

    [Fact]
    public void A_fault_of_one_of_them_ends_all_with_its_code()
    {
        TreeattnResult[] results = RunAtRendezvous(2, rank => _verify, rank => [("TREEATTN_EMULATION_NCCL_FAULT", "1:5:3")]);

        Assert.All(results, result => result.Exits(203));
        Assert.Contains(results, result => result.Errors.Contains("Rank 1 of 2", StringComparison.Ordinal));
    }

    [Theory, InlineData("nowhere", "0", "2", "is no address to meet at"), InlineData("127.0.0.1:29400", "2", "2", "this is rank 2 of 2")]
    public void A_rendezvous_that_cannot_be_is_refused(string address, string rank, string size, string words)
    {
        using var process = TreeattnProcess.Start(
            [.. _verify], [.. EmulatedCuda.Variables, ("TREEATTN_RENDEZVOUS", address), ("TREEATTN_RANK", rank), ("TREEATTN_WORLD_SIZE", size)]);

        process.Wait().Exits(2).Says(words);
    }

    private static TreeattnResult[] RunAtRendezvous(
        int ranks, Func<int, string[]> arguments, Func<int, (string Name, string Value)[]>? variables = null)
    {
        using var probe = new TcpListener(IPAddress.Loopback, 0);
        probe.Start();
        string address = $"127.0.0.1:{((IPEndPoint)probe.LocalEndpoint).Port}";
        probe.Stop();
        var processes = new List<TreeattnProcess>();
        try
        {
            for (int rank = 0; rank < ranks; rank++)
            {
                processes.Add(TreeattnProcess.Start(arguments(rank), [
                    .. EmulatedCuda.Variables, .. variables?.Invoke(rank) ?? [], ("TREEATTN_RENDEZVOUS", address), ("TREEATTN_RANK", $"{rank}"), ("TREEATTN_WORLD_SIZE", $"{ranks}"),
                ]));
            }

            return [.. processes.Select(process => process.Wait())];
        }
        finally
        {
            processes.ForEach(process => process.Dispose());
        }
    }

    private static TreeattnResult RunRanks(string mpi, int ranks, IReadOnlyList<string> arguments)
    {
        using var process = TreeattnProcess.StartRanks(mpi, ranks, arguments, EmulatedCuda.Variables);
        return process.Wait();
    }
}
