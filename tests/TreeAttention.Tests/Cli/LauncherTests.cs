using System;
using System.IO;
using TreeAttention.Distributed;
using Xunit;

namespace TreeAttention.Tests;

/// <summary>The program under both launchers: right results, faults told once, every rank ended.</summary>
[Collection("mpi")]
public sealed class LauncherTests
{
    private static readonly AttentionShape _shape = new(2, 3, 1100, 4, 2, 8, 8);

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Reproducible_bits_are_those_of_in_process_ranks(string mpi)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        AttendFilesTests.Attend(files, tensors, ["--reproducible", "--ranks", "3"]).Exits(0);
        byte[] output = File.ReadAllBytes(files.At("output.npy"));
        byte[] lse = File.ReadAllBytes(files.At("lse.npy"));

        TreeattnResult result = TreeattnProcess.RunRanks(mpi, 2, [.. Arguments(files, tensors), "--reproducible", "--force", "--json", "--verify"]).Exits(0);

        Assert.Equal(output, File.ReadAllBytes(files.At("output.npy")));
        Assert.Equal(lse, File.ReadAllBytes(files.At("lse.npy")));
        Assert.Equal("mpi", result.Json.GetProperty("transport").GetString());
        Assert.Single(result.JsonLines);
        Assert.DoesNotContain('\u001b', result.Output);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_NaN_in_the_last_ranks_keys_is_told_once(string mpi)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Poison("key.npy", (1100L * 16) - 1, float.NaN);

        TreeattnResult result = TreeattnProcess.RunRanks(mpi, 3, Arguments(files, tensors)).Exits(65);

        Assert.Single(result.Errors.Split('\n'), line => line.Contains("position 1099", StringComparison.Ordinal));
        Assert.Empty(result.Output);
        Assert.Equal(3, files.Names.Length);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Ranks_that_disagree_end_with_78_and_the_settings_that_differ(string mpi)
    {
        using var files = new CliFiles();
        string[] arguments = Arguments(files, files.Tensors(_shape));

        using var process = TreeattnProcess.StartPrograms(mpi, [(1, arguments), (1, [.. arguments, "--causal"])]);
        TreeattnResult result = process.Wait().Exits(78);

        Assert.Single(result.Errors.Split('\n'), line => line.Contains("--causal", StringComparison.Ordinal));
        Assert.DoesNotContain("--window", result.Errors, StringComparison.Ordinal);
        Assert.Equal(3, files.Names.Length);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void In_process_ranks_under_a_launcher_are_refused(string mpi)
    {
        using var files = new CliFiles();

        TreeattnProcess.RunRanks(mpi, 2, [.. Arguments(files, files.Tensors(_shape)), "--transport", "in-process"]).Exits(78).Says("--transport in-process");
    }

    [Fact]
    public void The_library_of_another_launcher_is_refused()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/mpiexec.mpich"), "MPICH is not installed.");
        using var files = new CliFiles();

        using var process = TreeattnProcess.StartRanks(
            "openmpi", 2, Arguments(files, files.Tensors(_shape)), ("TREEATTN_MPI_LIBRARY", "libmpich.so.12"));

        process.Wait().Exits(78);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_killed_rank_ends_the_job(string mpi)
    {
        using var process = TreeattnProcess.StartRanks(mpi, 3, ["bench", "-b", "4K", "-n", "1000000"]);
        int[] ranks = process.Ranks(3);

        TreeattnProcess.Signal("KILL", ranks[1]);
        TreeattnResult result = process.Wait();

        Assert.NotEqual(0, result.ExitCode);
        Assert.Empty(process.Survivors());
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_terminated_launcher_leaves_no_rank_and_no_file(string mpi)
    {
        using var files = new CliFiles();
        using var process = TreeattnProcess.StartRanks(
            mpi, 2, [.. Arguments(files, files.Tensors(_shape)), "--repeat", "1000000", "--warmup", "1000000"]);
        _ = process.Ranks(2);
        System.Threading.Thread.Sleep(2000); // into the runs

        process.Terminate();
        TreeattnResult result = process.Wait();

        Assert.Empty(process.Survivors());
        Assert.Equal(3, files.Names.Length);
        Assert.Empty(result.Output);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Verify_passes_on_1_to_4_ranks_with_the_reproducible_bits_of_in_process_ranks(string mpi)
    {
        string? Bits(TreeattnResult result) => result.Json.GetProperty("reproducible_bits").GetString();
        string? expected = Bits(TreeattnProcess.Run("verify", "--cases", "1", "--json").Exits(0));
        for (int ranks = 1; ranks <= 4; ranks++)
        {
            TreeattnResult result = TreeattnProcess.RunRanks(mpi, ranks, ["verify", "--json"]).Exits(0);

            Assert.Matches(@"^[1-9]\d* passed, 0 failed$", result.Output.TrimEnd('\n').Split('\n')[^2]);
            Assert.Equal("mpi", result.Json.GetProperty("transport").GetString());
            Assert.Equal(expected, Bits(result));
        }
    }

    private static string[] Arguments(CliFiles files, string[] tensors) =>
        ["attend", .. tensors, "--output", files.At("output.npy"), "--lse", files.At("lse.npy")];
}
