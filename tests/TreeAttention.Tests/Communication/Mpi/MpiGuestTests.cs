using System;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Communication.Mpi;

/// <summary>Groups over communicators of a program that has an MPI of its own.</summary>
[Collection("mpi")]
public sealed class MpiGuestTests
{
    // A .NET program that loads MPICH by itself keeps UCX, which lies below, from the signals that are exceptions of .NET.
    private static readonly (string, string) _signals = ("UCX_ERROR_SIGNALS", "SIGILL");

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Ranks_of_a_job_attend_to_their_shards_without_a_cache(string kind)
    {
        using var job = MpiJob.Start(kind, 3, ["attend"]);

        int exit = job.Wait();

        Assert.True(exit == 0, job.Errors);
        Assert.Equal("ok attend", job.Output);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void Parts_of_a_world_that_the_caller_began_decode_and_the_caller_goes_on_with_it(string kind)
    {
        using var job = MpiJob.Start(kind, 4, ["guest", "decode"], _signals);

        int exit = job.Wait();

        Assert.True(exit == 0, job.Errors);
        Assert.Equal("ok guest", job.Output);
    }

    [Fact]
    public void NCCL_moves_the_data_of_ranks_that_the_callers_MPI_brings_together()
    {
        EmulatedCuda.RequireLibrary();
        using var job = MpiJob.Start(
            "openmpi", 4, ["guest", "nccl"], ("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", EmulatedCuda.Library),
            ("XDG_CACHE_HOME", EmulatedCuda.CacheFolder));

        int exit = job.Wait();

        Assert.True(exit == 0, job.Errors);
        Assert.Equal("ok guest", job.Output);
    }

    [Theory, InlineData("openmpi"), InlineData("mpich")]
    public void A_rank_that_fails_ends_the_group_and_not_the_job(string kind)
    {
        using var job = MpiJob.Start(kind, 4, ["guest", "fault"], _signals);

        int exit = job.Wait();

        Assert.True(exit == 0, job.Errors);
        Assert.StartsWith("ok guest", job.Output, StringComparison.Ordinal); // UCX, below MPICH, warns of what was never received
    }
}
