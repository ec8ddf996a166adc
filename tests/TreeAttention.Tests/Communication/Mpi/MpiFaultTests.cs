using System;
using System.Diagnostics;
using System.IO;
using System.Linq;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Communication.Mpi;

/// <summary>Ranks that are killed, stopped, late or slow, under real launchers.</summary>
[Collection("mpi")]
public sealed class MpiFaultTests
{
    private static readonly TimeSpan _stallLimit = TimeSpan.FromSeconds(3);

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_killed_rank_ends_all_and_leaves_nothing_behind(string kind)
    {
        using var job = MpiJob.Start(kind, 3, ["loop", "3", "0"]);
        int[] processes = job.ProcessesOfRanks(3);
        var clock = Stopwatch.StartNew();

        ProcessTree.Signal("KILL", processes[1]);
        int exit = job.Wait();

        Assert.NotEqual(0, exit);
        Assert.True(clock.Elapsed < TimeSpan.FromSeconds(8), $"{clock.Elapsed}");
        Assert.Empty(job.Survivors());
        Assert.DoesNotContain(
            Directory.GetFiles("/dev/shm", "treeattn-*"),
            file => processes.Any(process => file.Contains($"-{process}-", StringComparison.Ordinal)));
    }

    [Theory, InlineData("openmpi", 2), InlineData("openmpi", 0), InlineData("mpich", 2), InlineData("mpich", 0)]
    public void A_stopped_rank_is_named_and_ends_all_in_time(string kind, int rank)
    {
        using var job = MpiJob.Start(kind, 3, ["loop", "3", "0"]);
        int[] processes = job.ProcessesOfRanks(3);
        var clock = Stopwatch.StartNew();

        ProcessTree.Signal("STOP", processes[rank]);
        int exit = job.Wait();

        Assert.Equal(201, exit);
        Assert.InRange(clock.Elapsed, _stallLimit - TimeSpan.FromSeconds(1), _stallLimit + TimeSpan.FromSeconds(2));
        Assert.Matches($"rank {rank} \\(.*pid {processes[rank]}\\) is stopped or unreachable: .*\\(all-reduce\\)", job.Errors);
        Assert.Empty(job.Survivors());
    }

    [Fact]
    public void With_nobody_watching_a_stopped_rank_stops_all_for_ever()
    {
        using var job = MpiJob.Start("mpich", 3, ["loop", "0", "0"]);
        int[] processes = job.ProcessesOfRanks(3);

        ProcessTree.Signal("STOP", processes[1]);
        bool ended = job.EndsWithin(_stallLimit + TimeSpan.FromSeconds(3));

        Assert.False(ended);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_rank_that_never_arrives_is_named_with_the_operation_that_it_missed(string kind)
    {
        using var job = MpiJob.Start(kind, 3, ["loop", "2", "0", "spin"]);

        int exit = job.Wait();

        Assert.Equal(201, exit);
        Assert.Matches(@"rank 2 \(.*\) did not arrive at operation \d+ \(all-reduce\)", job.Errors);
        Assert.Single(job.Errors.Split('\n'), line => line.Contains("did not arrive", StringComparison.Ordinal));
    }

    [Theory, InlineData("openmpi", "slow"), InlineData("mpich", "compute"), InlineData("mpich", "none")]
    public void A_rank_that_is_slow_or_computes_for_long_is_no_fault(string kind, string oddity)
    {
        using var job = MpiJob.Start(kind, 3, ["loop", "1", "60", oddity]);

        int exit = job.Wait();

        Assert.True(exit == 0, job.Errors);
        Assert.Contains("ok loop", job.Output, StringComparison.Ordinal);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_fault_of_one_rank_ends_all_with_its_code(string kind)
    {
        using var job = MpiJob.Start(kind, 3, ["loop", "3", "0", "throw"]);

        int exit = job.Wait();

        Assert.Equal(65, exit);
        Assert.Contains("a fault of one rank", job.Errors, StringComparison.Ordinal);
        Assert.Empty(job.Survivors());
    }

    [Theory]
    [InlineData("openmpi", "agreement"), InlineData("mpich", "agreement")]
    [InlineData("openmpi", "loading"), InlineData("mpich", "loading")]
    [InlineData("openmpi", "tree"), InlineData("mpich", "tree")]
    [InlineData("openmpi", "ring"), InlineData("mpich", "ring")]
    public void A_bug_of_one_rank_ends_all_with_70_and_its_stack_once(string kind, string place)
    {
        using var job = MpiJob.Start(kind, 3, ["bug", place]);
        var clock = Stopwatch.StartNew();

        int exit = job.Wait();

        Assert.Equal(70, exit);
        Assert.True(clock.Elapsed < TimeSpan.FromSeconds(15), $"{clock.Elapsed}"); // the start of three ranks and two seconds
        Assert.Single(job.Errors.Split('\n'), line => line.Contains("a bug of one rank", StringComparison.Ordinal));
        Assert.Matches(@"treeattn: rank 2 \(.*pid \d+\): .*InvalidOperationException", job.Errors);
        Assert.Contains("at TreeAttention.Ranks.BuggyRank", job.Errors, StringComparison.Ordinal);
        Assert.Empty(job.Survivors());
    }

    [Theory]
    [InlineData("openmpi", "decode"), InlineData("mpich", "decode")]
    [InlineData("openmpi", "speculate"), InlineData("mpich", "speculate")]
    [InlineData("openmpi", "prefill"), InlineData("mpich", "prefill")]
    public void A_fault_of_one_rank_in_a_step_of_a_joined_group_ends_all_with_70(string kind, string step)
    {
        using var job = MpiJob.Start(kind, 3, ["faulty-step", step]);

        int exit = job.Wait();

        Assert.Equal(70, exit);
        Assert.Matches(@"treeattn: rank 2 \(.*pid \d+\): .*the device is out of time", job.Errors);
        Assert.Empty(job.Survivors());
    }

    [Theory]
    [InlineData("openmpi", "return"), InlineData("mpich", "return"), InlineData("mpich", "return agreement")]
    [InlineData("openmpi", "catch"), InlineData("mpich", "catch"), InlineData("openmpi", "throw"), InlineData("openmpi", "catch agreement")]
    public void A_rank_that_leaves_early_keeps_its_own_end_and_no_rank_ends_with_success(string kind, string how)
    {
        using var job = MpiJob.Start(kind, 3, ["leave-early", how]);
        var clock = Stopwatch.StartNew();

        int exit = job.Wait();

        Assert.True(exit is not 0 and not 1, $"{exit}\n{job.Errors}");
        Assert.DoesNotContain("the work is complete", job.Errors, StringComparison.Ordinal);
        Assert.Equal(how.StartsWith("catch", StringComparison.Ordinal), job.Output.Contains("caught the caller's own exception", StringComparison.Ordinal));
        Assert.Equal(how == "throw", job.Errors.Contains("NotSupportedException", StringComparison.Ordinal));
        if (how.StartsWith("return", StringComparison.Ordinal))
        {
            Assert.Equal(200, exit);
            Assert.Matches(@"treeattn: rank 2 \(.*\): this rank left the group while others waited", job.Errors);
        }
        else if (how.StartsWith("catch", StringComparison.Ordinal) && kind == "mpich")
        {
            Assert.Equal(3, exit);
        }

        Assert.True(clock.Elapsed < ProcessTree.Patience, $"{clock.Elapsed}");
        Assert.Empty(job.Survivors());
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Memory_that_runs_out_on_one_rank_ends_all_with_71(string kind)
    {
        using var job = MpiJob.Start(kind, 3, ["bug", "memory"]);

        int exit = job.Wait();

        Assert.Equal(71, exit);
        Assert.Matches(@"treeattn: rank 2 \(.*pid \d+\): This does not fit in the memory of the host", job.Errors);
        Assert.Empty(job.Survivors());
    }
}
