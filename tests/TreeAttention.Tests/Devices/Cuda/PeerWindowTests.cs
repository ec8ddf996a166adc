using System;
using System.Linq;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cuda;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>One-shot between GPUs: states written straight into each other's memory, by ranks of one process and of several.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class PeerWindowTests
{
    private const int Rows = 10;
    private const int ValueDim = 24;

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Ranks_of_one_process_get_the_bits_of_the_all_gather_round_after_round(int ranks)
    {
        using var hosts = new HostStates(ranks, Rows, ValueDim, seed: 21);
        using var group = InProcessGroup.Create(ranks);
        CudaPlatform platform = EmulatedCuda.Platform;

        group.Run(rank =>
        {
            using var device = new CudaDevice(platform, rank % 3); // three GPUs, one of them shared by ranks 0 and 3
            using var transport = new DeviceTransport(group.Transports[rank], device);
            var context = new RankContext(transport, device, group.Controls[rank]);
            using Reduction gather = ReductionFactory.Create(ReductionKind.AllGather, context, Rows, ValueDim);
            using Reduction oneShot = ReductionFactory.Create(ReductionKind.OneShot, context, Rows, ValueDim);
            PartialAttention mine = hosts.States[rank];
            var state = new PartialAttention(device.Allocate(mine.Region.Bytes, ElementType.Float32), Rows, ValueDim);
            for (int round = 0; round < 5; round++)
            {
                mine.Output[0] = round; // every round other states, or a slot of the round before would do
                float[] expected = Reduce(device, gather, mine, state);
                Assert.Equal(round == 0, expected[0] == 0);

                float[] actual = Reduce(device, oneShot, mine, state);

                Assert.Equal(expected.Select(BitConverter.SingleToInt32Bits), actual.Select(BitConverter.SingleToInt32Bits));
            }
        });
    }

    [Fact]
    public void The_slots_lie_on_the_device_and_no_host_stages_them()
    {
        using var group = InProcessGroup.Create(2);
        CudaPlatform platform = EmulatedCuda.Platform;

        group.Run(rank =>
        {
            using var device = new CudaDevice(platform, rank);
            using var transport = new DeviceTransport(group.Transports[rank], device);
            using IPeerMemory? peers = transport.SharePeerMemory(100);

            Assert.Equal(MemoryPlace.Device, peers!.Mine.Place);
            Assert.Equal(100, peers.SlotOf(1 - rank).Bytes);
        });
    }

    [Theory]
    [InlineData("openmpi", 3, "1")]
    [InlineData("mpich", 2, "1")]
    [InlineData("openmpi", 2, "0")]
    public void Processes_get_the_same_bits_by_shared_gpu_memory_and_say_where_there_is_none(string mpi, int ranks, string ipc)
    {
        EmulatedCuda.RequireLibrary();
        using var files = new CliFiles();
        string[] call = ["attend", .. files.Tensors(new(1, 2, 300, 4, 2, 32, 32)), "--device", "cuda", "--algorithm", "tree", "--lse", files.At("lse.npy"), "--force"];
        (string, string)[] variables =
        [
            ("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", EmulatedCuda.Library), ("XDG_CACHE_HOME", EmulatedCuda.CacheFolder),
            ("TREEATTN_EMULATION_IPC", ipc),
        ];

        TreeattnResult gathered = RunRanks(mpi, ranks, [.. call, "--output", files.At("gathered.npy"), "--reduction", "allgather"], variables);
        TreeattnResult direct = RunRanks(mpi, ranks, [.. call, "--output", files.At("direct.npy"), "--reduction", "one-shot", "--repeat", "3"], variables);

        gathered.Exits(0);
        direct.Exits(0);
        Assert.Equal(System.IO.File.ReadAllBytes(files.At("gathered.npy")), System.IO.File.ReadAllBytes(files.At("direct.npy")));
        Assert.Equal(ipc == "0" ? 1 : 0, direct.Errors.Split("cannot share GPU memory (CUDA_ERROR_NOT_SUPPORTED)").Length - 1);
    }

    private static TreeattnResult RunRanks(string mpi, int ranks, string[] arguments, (string Name, string Value)[] variables)
    {
        using var process = TreeattnProcess.StartRanks(mpi, ranks, arguments, variables);
        return process.Wait();
    }

    private static float[] Reduce(CudaDevice device, Reduction reduction, PartialAttention mine, PartialAttention state)
    {
        device.Copy(mine.Region, state.Region);
        reduction.Reduce(state);
        using var host = new HostMemory(state.Region.Bytes, ElementType.Float32);
        device.Copy(state.Region, host.Region);
        return host.Region.AsSpan<float>().ToArray();
    }
}
