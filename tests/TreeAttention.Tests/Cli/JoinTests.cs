using System;
using System.IO;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Cli;

/// <summary>Ranks that cannot take part, or do not come: nobody waits for ever, everybody ends with the code of the one who knows why.</summary>
[Collection("mpi")]
public sealed class JoinTests
{
    private static readonly AttentionShape _shape = new(1, 2, 20, 4, 2, 8, 8);

    [Theory]
    [InlineData("mpich", "--nonsense", 2, "rank 1: Unrecognized command or argument '--nonsense'.")]
    [InlineData("openmpi", "--nonsense", 2, "rank 1: Unrecognized command or argument '--nonsense'.")]
    [InlineData("mpich", "--ranks 4", 2, "rank 1: --ranks 4, but the launcher started 2 processes")]
    [InlineData("openmpi", "--nodes 0,0,0", 2, "rank 1: --nodes names the node of 3 ranks, but there are 2")]
    [InlineData("mpich", "--nodes 0,1", 78, "--nodes: rank 0: as found, rank 1: 0,1")]
    [InlineData("openmpi", "--device cpu", 78, "--device: rank 0: Auto, rank 1: Cpu")]
    [InlineData("mpich", "--transport in-process", 78, "rank 1: --transport in-process makes its ranks itself")]
    public void What_keeps_one_rank_out_ends_all_with_its_words(string mpi, string added, int code, string words)
    {
        using var files = new CliFiles();
        string[] arguments = ["attend", .. files.Tensors(_shape), "--output", files.At("output.npy")];

        using var process = TreeattnProcess.StartPrograms(mpi, [(1, arguments), (1, [.. arguments, .. added.Split(' ')])]);

        process.Wait().Exits(code).Says(words);
        Assert.Empty(process.Survivors());
        Assert.DoesNotContain("output.npy", files.Names);
    }

    [Theory, InlineData("mpich"), InlineData("openmpi")]
    public void A_rank_that_never_comes_ends_the_others_within_the_join_timeout(string mpi)
    {
        Assert.SkipUnless(File.Exists($"/usr/bin/mpiexec.{mpi}"), $"mpiexec.{mpi} is not installed.");
        string[] arguments = ["bench", "-b", "64", "-e", "64", "--join-timeout", "3"];

        using var job = new ProcessTree(ProcessTree.Launch(mpi, (1, [TreeattnProcess.Program, .. arguments]), (1, ["/bin/bash", "-c", "kill -STOP $$"])));

        Assert.Equal(201, job.Wait());
        Assert.Contains("rank 0 of 2", job.Errors, StringComparison.Ordinal);
        Assert.Contains("has waited in MPI_Init", job.Errors, StringComparison.Ordinal);
        Assert.Empty(job.Survivors(TimeSpan.FromSeconds(5)));
    }

    [Fact]
    public void A_bad_command_line_of_every_rank_is_told_once()
    {
        TreeattnResult result = TreeattnProcess.RunRanks("mpich", 3, ["attend", "--nonsense"]).Exits(2);

        Assert.Single(result.Errors.Split('\n'), line => line.Contains("--nonsense", StringComparison.Ordinal));
    }
}
