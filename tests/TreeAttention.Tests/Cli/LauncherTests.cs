using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Threading;
using TreeAttention.Testing.Processes;
using TreeAttention.Tests.Cli.Attend;
using Xunit;

namespace TreeAttention.Tests.Cli;

/// <summary>The program under both launchers: right results, faults told once, every rank ended.</summary>
[Collection("mpi")]
public sealed class LauncherTests
{
    private static readonly AttentionShape _shape = new(2, 3, 1100, 4, 2, 8, 8);

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Reproducible_files_are_those_of_any_number_of_in_process_ranks(string mpi)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 2, 5000, 4, 2, 16, 24)); // ten pages, in as many lanes
        var written = new HashSet<string>();
        void Keep() => written.Add(Convert.ToHexString([.. File.ReadAllBytes(files.At("output.npy")), .. File.ReadAllBytes(files.At("lse.npy"))]));
        foreach (int ranks in (int[])[1, 3, 8])
        {
            AttendFilesTests.Attend(files, tensors, ["--reproducible", "--force", "--ranks", $"{ranks}"]).Exits(0);
            Keep();
        }

        foreach (int ranks in (int[])[2, 3])
        {
            TreeattnResult result = TreeattnProcess.RunRanks(
                mpi, ranks, [.. Arguments(files, tensors), "--reproducible", "--force", "--json", "--verify"]).Exits(0);
            Keep();

            Assert.Equal("mpi", result.Json.GetProperty("transport").GetString());
            Assert.Single(result.JsonLines);
            Assert.DoesNotContain('\u001b', result.Output);
        }

        Assert.Single(written);
    }

    [Theory]
    [InlineData("openmpi", "query", "position 1, head 3, dim 7")]
    [InlineData("mpich", "key", "position 1099, head 1, dim 7")]
    [InlineData("mpich", "value", "position 550, head 0, dim 3")]
    public void A_NaN_is_told_once_and_where_it_is(string mpi, string tensor, string place)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Poison(tensor + ".npy", tensor switch { "query" => (2 * 4 * 8) - 1, "key" => (1100L * 16) - 1, _ => (550 * 16) + 3 }, float.NaN);

        TreeattnResult result = TreeattnProcess.RunRanks(mpi, 3, Arguments(files, tensors)).Exits(65);

        string line = Assert.Single(result.Errors.Split('\n'), line => line.StartsWith("treeattn: ", StringComparison.Ordinal));
        Assert.Contains(place, line.Replace("[", "", StringComparison.Ordinal), StringComparison.Ordinal);
        Assert.Empty(result.Output);
        Assert.Equal(3, files.Names.Length);
    }

    [Theory]
    [InlineData("openmpi", "--causal", "--causal")]
    [InlineData("openmpi", "--dtype f16", "--dtype")]
    [InlineData("mpich", "--reduction butterfly", "--reduction")]
    [InlineData("openmpi", "--shard zigzag", "--shard")]
    [InlineData("mpich", "--softcap 2.5", "--softcap")]
    [InlineData("openmpi", "another shape", "value")]
    [InlineData("mpich", "other numbers", "key")]
    public void Ranks_that_disagree_end_with_78_and_the_settings_that_differ(string mpi, string difference, string setting)
    {
        using var files = new CliFiles();
        string[] arguments = Arguments(files, files.Tensors(_shape));
        string other = difference switch
        {
            "another shape" => files.Random("other.npy", "<f4", random => random.NextDouble(), 2, 1100, 2, 9),
            "other numbers" => files.Random("other.npy", "<f4", random => random.NextDouble(), 2, 1100, 2, 8),
            _ => "",
        };
        string[] added = other.Length > 0 ? [.. arguments.Select(argument => argument == files.At(setting + ".npy") ? other : argument)]
            : [.. arguments, .. difference.Split(' ')];

        using var process = TreeattnProcess.StartPrograms(mpi, [(1, arguments), (1, added)]);
        TreeattnResult result = process.Wait().Exits(78);

        string[] told = [.. result.Errors.Split('\n').Where(line => line.StartsWith("  ", StringComparison.Ordinal) && line.Contains(": rank 0: ", StringComparison.Ordinal))];
        Assert.StartsWith($"  {setting}: rank 0: ", Assert.Single(told), StringComparison.Ordinal);
        Assert.DoesNotContain("output.npy", files.Names);
        Assert.Empty(process.Survivors());
    }

    [Theory, InlineData("openmpi", "ring"), InlineData("mpich", "ring-no-overlap")]
    public void Decode_by_a_ring_verifies(string mpi, string algorithm)
    {
        TreeattnResult result = TreeattnProcess.RunRanks(
            mpi, 3,
            ["decode", "--context", "1500", "--steps", "40", "--batch", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--dtype", "f16",
            "--algorithm", algorithm, "--verify", "--json"]).Exits(0);

        // Of 1540 keys rank 0 has pages 0 and 2, rank 1 page 3, rank 2 page 1: a page is 2 rows x 2 heads x 512 keys x 2 x 32 bytes.
        Assert.Equal("mpi", result.Json.GetProperty("transport").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt64());
        Assert.True(result.Json.GetProperty("bytes_sent").GetInt64() > 3 * 2 * 2 * 512 * 2 * 32);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Ranks_with_other_commands_end_with_78(string mpi)
    {
        using var files = new CliFiles();

        using var process = TreeattnProcess.StartPrograms(mpi, [(1, Arguments(files, files.Tensors(_shape))), (1, ["verify"]), (1, ["bench"])]);
        TreeattnResult result = process.Wait().Exits(78);

        Assert.Contains("  command: rank 0: attend, rank 1: verify, rank 2: bench\n", result.Errors, StringComparison.Ordinal);
        Assert.Empty(process.Survivors());
    }

    [Theory, InlineData("bench"), InlineData("decode")]
    public void Work_over_other_files_ends_with_78(string command)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        string[] others = [.. tensors];
        others[1] = files.Random("other.npy", "<f4", random => random.NextDouble(), 2, 5, 4, 8);

        using var process = TreeattnProcess.StartPrograms("mpich", [(1, [command, .. tensors]), (1, [command, .. others])]);
        TreeattnResult result = process.Wait().Exits(78);

        Assert.Contains("query: rank 0: f32 [2, 3, 4, 8]", result.Errors, StringComparison.Ordinal);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void In_process_ranks_under_a_launcher_are_refused(string mpi)
    {
        using var files = new CliFiles();

        TreeattnProcess.RunRanks(mpi, 2, [.. Arguments(files, files.Tensors(_shape)), "--transport", "in-process"]).Exits(78).Says("--transport in-process");
    }

    [Theory, InlineData("openmpi", "mpich", "libmpich.so.12"), InlineData("mpich", "openmpi", "libmpi.so.40")]
    public void The_library_of_another_launcher_is_refused(string mpi, string other, string library)
    {
        Assert.SkipUnless(File.Exists($"/usr/bin/mpiexec.{other}"), $"mpiexec.{other} is not installed.");
        using var files = new CliFiles();
        string[] arguments = Arguments(files, files.Tensors(_shape));

        using var process = TreeattnProcess.StartRanks(mpi, 2, arguments, ("TREEATTN_MPI_LIBRARY", library));

        process.Wait().Exits(78).Says(library);
        Assert.Empty(process.Survivors());
        Assert.Equal(3, files.Names.Length);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void The_ranks_of_a_killed_launcher_leave(string mpi)
    {
        using var process = TreeattnProcess.StartRanks(mpi, 3, ["bench", "-b", "4K", "-n", "1000000", "--stall-timeout", "3"]);
        int[] ranks = process.Ranks(3);
        Thread.Sleep(1000); // into the rounds

        process.KillLauncher();

        Assert.Equal(3, ranks.Length);
        Assert.Empty(process.Survivors()); // within five seconds: the stall timeout and two more
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_killed_rank_ends_the_job(string mpi)
    {
        using var process = TreeattnProcess.StartRanks(mpi, 3, ["bench", "-b", "4K", "-n", "1000000"]);
        int[] ranks = process.Ranks(3);

        ProcessTree.Signal("KILL", ranks[1]);
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
        Thread.Sleep(2000); // into the runs

        process.Terminate();
        TreeattnResult result = process.Wait();

        Assert.Empty(process.Survivors());
        Assert.Equal(3, files.Names.Length);
        Assert.Empty(result.Output);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Verify_passes_on_1_3_and_4_ranks_with_the_reproducible_bits_of_in_process_ranks(string mpi)
    {
        string? Bits(TreeattnResult result) => result.Json.GetProperty("reproducible_bits").GetString();
        string? expected = Bits(TreeattnProcess.Run("verify", "--cases", "1", "--json").Exits(0));
        foreach (int ranks in (int[])[1, 3, 4])
        {
            // All cases on three ranks, which divide nothing; the digest does not depend on how many cases there are.
            string[] cases = ranks == 3 ? [] : ["--cases", "40"];
            TreeattnResult result = TreeattnProcess.RunRanks(mpi, ranks, ["verify", "--json", .. cases]).Exits(0);

            Assert.Matches(@"^[1-9]\d* passed, 0 failed$", result.Output.TrimEnd('\n').Split('\n')[^2]);
            Assert.Equal("mpi", result.Json.GetProperty("transport").GetString());
            Assert.Equal(expected, Bits(result));
        }
    }

    private static string[] Arguments(CliFiles files, string[] tensors) =>
        ["attend", .. tensors, "--output", files.At("output.npy"), "--lse", files.At("lse.npy")];
}
