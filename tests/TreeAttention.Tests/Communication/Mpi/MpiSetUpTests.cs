using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.Mpi;
using Xunit;

namespace TreeAttention.Tests.Communication.Mpi;

/// <summary>What is decided before and after the MPI library works: launcher, nodes, teardown.</summary>
public sealed class MpiSetUpTests
{
    [Fact]
    public void The_launcher_decides_which_library_is_tried_first()
    {
        LauncherEnvironment openMpi = Read(("OMPI_COMM_WORLD_SIZE", "12"), ("OMPI_COMM_WORLD_RANK", "3"), ("PMIX_RANK", "3"));
        LauncherEnvironment mpich = Read(("PMI_SIZE", "4"), ("PMI_RANK", "0"));
        LauncherEnvironment slurm = Read(("PMIX_RANK", "1"), ("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "8"));

        Assert.Equal(("libmpi.so.40", 12, 3), (openMpi.Candidates[0], openMpi.Size, openMpi.Rank));
        Assert.Equal(("libmpich.so.12", 4, 0), (mpich.Candidates[0], mpich.Size, mpich.Rank));
        Assert.Equal(("libmpi.so.40", 8, 1), (slurm.Candidates[0], slurm.Size, slurm.Rank));
        Assert.False(Read().IsPresent);
        Assert.Null(Read(("PMI_SIZE", "many")).Size);
    }

    [Fact]
    public void Ranks_of_one_leader_share_a_node()
    {
        var nodes = MpiNodes.Judge([Report("a", 0, 2), Report("b", 1, 2), Report("a", 0, 2), Report("b", 1, 2)]);

        Assert.Equal([0, 1, 0, 1], nodes.NodeOfRank);
    }

    [Fact]
    public void Host_names_decide_when_the_library_finds_every_rank_alone()
    {
        var nodes = MpiNodes.Judge([Report("a", 0, 1), Report("b", 1, 1), Report("a", 2, 1)]);

        Assert.Equal([0, 1, 0], nodes.NodeOfRank);
    }

    [Fact]
    public void Machines_of_one_name_stay_apart_when_the_library_tells_them_apart()
    {
        var nodes = MpiNodes.Judge([Report("localhost", 0, 2), Report("localhost", 0, 2), Report("localhost", 2, 1)]);

        Assert.Equal([0, 0, 1], nodes.NodeOfRank);
    }

    [Theory]
    [InlineData(2, 0b11, 0b11, false)] // two ranks, free on two cores
    [InlineData(1, 0b01, 0b10, false)] // bound to one core each
    [InlineData(1, 0b01, 0b01, true)] // bound to the same one
    [InlineData(1, 0b11, 0b11, true)] // two cores, but a quota of one
    public void More_ranks_than_cores_is_oversubscribed(int processors, ulong first, ulong second, bool expected)
    {
        var nodes = MpiNodes.Judge([Report("a", 0, 2, processors, first), Report("a", 0, 2, processors, second)]);

        Assert.Equal(expected, nodes.IsOversubscribed);
    }

    [Fact]
    public void A_teardown_that_hangs_is_left_after_its_limit()
    {
        using var left = new ManualResetEventSlim();

        BoundedTeardown.Run(() => left.Wait(TestContext.Current.CancellationToken), TimeSpan.FromMilliseconds(50), left.Set);

        Assert.True(left.IsSet);
    }

    [Fact]
    public void A_teardown_in_time_is_not_disturbed()
    {
        int stuck = 0;

        BoundedTeardown.Run(() => { }, TimeSpan.FromSeconds(10), () => stuck++);

        Assert.Equal(0, stuck);
    }

    [Theory]
    [InlineData("gpu[003-007,9],cpu1", "123456", "0", "gpu003:35296")]
    [InlineData("alone", "7", "0", "alone:20112")]
    [InlineData("alone", "7", "3", "alone:20115")] // two steps at once in one allocation
    [InlineData("a12,b3", "40000", "0", "a12:20000")]
    [InlineData("n[5]", "1", "0", "n5:20016")]
    [InlineData("node[1-2]-ib,node9", "1", "0", "node1-ib:20016")]
    [InlineData("r[2,4]n[07-09],x", "1", "0", "r2n07:20016")]
    public void Slurm_without_MPI_meets_on_the_first_node_at_a_port_of_the_step(string nodes, string job, string step, string address)
    {
        LauncherEnvironment slurm = Read(
            ("SLURM_STEP_ID", step), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_PROCID", "3"), ("SLURM_STEP_NODELIST", nodes), ("SLURM_JOB_ID", job));

        Assert.Equal((address, 3, 8), (slurm.Rendezvous, slurm.Rank!.Value, slurm.Size!.Value));
    }

    [Fact]
    public void A_rendezvous_makes_ranks_without_any_launcher_and_goes_before_every_other_choice()
    {
        LauncherEnvironment plain = Read(("TREEATTN_RENDEZVOUS", "host:1"), ("TREEATTN_RANK", "2"), ("TREEATTN_WORLD_SIZE", "4"), ("PMI_RANK", "0"), ("PMI_SIZE", "9"));
        LauncherEnvironment slurm = Read(("TREEATTN_RENDEZVOUS", "host:1"), ("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"));

        Assert.Equal(("host:1", 2, 4), (plain.Rendezvous, plain.Rank!.Value, plain.Size!.Value));
        Assert.Equal((1, 2), (slurm.Rank!.Value, slurm.Size!.Value));
    }

    private static LauncherEnvironment Read(params (string Name, string Value)[] variables)
    {
        Dictionary<string, string> values = variables.ToDictionary(pair => pair.Name, pair => pair.Value);
        return LauncherEnvironment.Read(values.GetValueOrDefault);
    }

    private static MpiNodes.Report Report(string host, int leader, int sharing, int processors = 64, ulong mask = ulong.MaxValue)
    {
        ulong[] cores = new ulong[128];
        cores[0] = mask;
        return new MpiNodes.Report(host, leader, sharing, processors, (int)ulong.PopCount(mask), cores);
    }
}
