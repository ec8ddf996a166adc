using System;
using System.IO;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Communication.Mpi;

/// <summary>Ranks under real launchers: every operation, and the set-ups that must be refused.</summary>
[Collection("mpi")]
public sealed class MpiTransportTests
{
    // 3 is no power of two; 4 is more than the two cores of a small machine.
    public static MatrixTheoryData<string, int> Worlds => new(["openmpi", "mpich"], [1, 2, 3, 4]);

    public static TheoryData<string, string, string> WrongLaunchers => new()
    {
        { "openmpi", "libmpich.so.12", "3 processes were started by Open MPI's mpiexec, but this process loaded MPICH (libmpich.so.12) and sees 1 rank" },
        { "mpich", "libmpi.so.40", "3 processes were started by MPICH's mpiexec, but this process loaded Open MPI (libmpi.so.40) and sees 1 rank" },
    };

    [Theory, MemberData(nameof(Worlds))]
    public void Every_operation_holds_whole_and_in_small_pieces(string kind, int ranks)
    {
        using var job = MpiJob.Start(kind, ranks, ["conform"]);

        int exit = job.Wait();

        Assert.True(exit == 0, job.Errors);
        Assert.Equal(2 * 16, job.Output.Split('\n').Length);
        Assert.Equal(2, job.Output.Split("ok peer memory").Length - 1);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Faults_of_managed_code_stay_exceptions(string kind)
    {
        using var job = MpiJob.Start(kind, 2, ["managed-faults"]);

        int exit = job.Wait();

        Assert.True(exit == 0, job.Errors);
        Assert.Equal("ok managed faults", job.Output);
    }

    [Fact]
    public void Without_the_cure_a_fault_of_managed_code_kills_the_process()
    {
        Assert.SkipUnless(File.Exists("/usr/lib/x86_64-linux-gnu/libucs.so.0"), "The MPICH of this machine does not use UCX.");
        using var job = MpiJob.Start("mpich", 2, ["managed-faults"], ("UCX_ERROR_SIGNALS", "SIGSEGV,SIGFPE"));

        int exit = job.Wait();

        Assert.NotEqual(0, exit);
        Assert.DoesNotContain("ok managed faults", job.Output, StringComparison.Ordinal);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_rank_that_exits_without_leaving_ends_the_job_with_a_failure(string kind)
    {
        using var job = MpiJob.Start(kind, 3, ["exit"]);

        int exit = job.Wait();

        Assert.NotEqual(0, exit);
        Assert.DoesNotContain("passed a barrier", job.Errors, StringComparison.Ordinal);
        Assert.Empty(job.Survivors());
    }

    [Theory, InlineData("openmpi", 42), InlineData("openmpi", 201), InlineData("mpich", 42), InlineData("mpich", 201)]
    public void Abort_keeps_the_code_while_other_threads_are_inside_mpi(string kind, int code)
    {
        using var job = MpiJob.Start(kind, 3, ["abort", $"{code}"]);

        int exit = job.Wait();

        Assert.Equal(code, exit);
        Assert.Empty(job.Survivors());
    }

    [Theory, MemberData(nameof(WrongLaunchers))]
    public void The_launcher_of_another_mpi_is_refused(string kind, string library, string message)
    {
        using var job = MpiJob.Start(kind, 3, ["hello"], ("TREEATTN_MPI_LIBRARY", library));

        int exit = job.Wait();

        Assert.Equal(78, exit);
        Assert.Contains(message, job.Errors, StringComparison.Ordinal);
    }

    [Fact]
    public void Two_mpi_libraries_in_one_process_are_refused()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/mpiexec.openmpi"), "Open MPI is not installed beside MPICH.");
        using var job = MpiJob.Start("mpich", 2, ["hello"], ("LD_PRELOAD", "libmpi.so.40"), ("TREEATTN_MPI_LIBRARY", "libmpich.so.12"));

        int exit = job.Wait();

        Assert.Equal(78, exit);
        Assert.Matches("Two MPI libraries are in this process: .*/libmpich.so.12.* .*/libmpi.so.40", job.Errors);
    }

    [Fact]
    public void A_missing_library_is_named_with_the_ones_that_would_do()
    {
        using var job = MpiJob.Start("mpich", 1, ["hello"], ("TREEATTN_MPI_LIBRARY", "/nowhere/libmpi.so"));

        int exit = job.Wait();

        Assert.Equal(69, exit);
        Assert.Contains("tried /nowhere/libmpi.so", job.Errors, StringComparison.Ordinal);
        Assert.Contains("libmpi.so.40", job.Errors, StringComparison.Ordinal);
    }
}
