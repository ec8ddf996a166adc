using System;
using System.Diagnostics;
using System.IO;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Nccl;
using TreeAttention.Devices.Cuda;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Posix;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary>What goes wrong with NCCL ends the group in time, and with the right words.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class NcclFaultTests
{
    private const string Planted = "TREEATTN_EMULATION_NCCL_FAULT";

    [Theory, InlineData("1:3:3", "ncclInternalError"), InlineData("2:1:6", "ncclRemoteError"), InlineData("0:2:1", "ncclUnhandledCudaError")]
    public void An_asynchronous_error_ends_all_ranks_with_203(string planted, string name)
    {
        int rank = planted[0] - '0';
        LibC.SetEnvironment(Planted, planted, overwrite: 1);
        try
        {
            FaultException fault = Failure(3, (transport, device, _) =>
            {
                Region region = Allocate(device, 100);
                for (int operation = 0; operation < 10; operation++)
                {
                    transport.AllReduce(region, ReduceOperation.Sum);
                }

                device.Synchronize();
            });

            Assert.Equal(FaultCode.CommunicationFault, fault.Code);
            Assert.True(fault.Message.Contains($"Rank {rank} of 3", StringComparison.Ordinal) || name == "ncclRemoteError", fault.Message);
            Assert.Contains($"in NCCL with {name}", fault.Message, StringComparison.Ordinal);
        }
        finally
        {
            LibC.SetEnvironment(Planted, "", overwrite: 1);
        }
    }

    [Fact]
    public void Lengths_that_differ_are_found_and_named()
    {
        FaultException fault = Failure(2, (transport, device, _) =>
        {
            Region region = Allocate(device, 10 * (transport.Rank + 1));
            transport.AllReduce(region, ReduceOperation.Max);
            device.Synchronize();
        });

        Assert.Equal(FaultCode.CommunicationFault, fault.Code);
        Assert.Contains("an all-reduce of 10 elements", fault.Message, StringComparison.Ordinal);
        Assert.Contains("an all-reduce of 20 elements", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_rank_that_fails_by_itself_is_what_is_told()
    {
        FaultException fault = Failure(3, (transport, device, _) =>
        {
            if (transport.Rank == 2)
            {
                throw new FaultException(FaultCode.BadInput, "the third rank's file is broken");
            }

            transport.Barrier();
        });

        Assert.Equal((FaultCode.BadInput, "the third rank's file is broken"), (fault.Code, fault.Message));
    }

    [Fact]
    public void After_a_fault_every_operation_throws_it() => NcclRanks.Run(1, (transport, device, _) =>
    {
        // A type that all-reduces cannot have is refused by the transport; memory of the host by the library.
        using var host = new HostFloats(4);
        Region pretended = host.Region with { Place = MemoryPlace.Device };
        FaultException first = Assert.Throws<FaultException>(() => transport.AllReduce(pretended, ReduceOperation.Sum));

        Region region = Allocate(device, 4);
        FaultException again = Assert.Throws<FaultException>(() => transport.AllReduce(region, ReduceOperation.Sum));
        FaultException waiting = Assert.Throws<FaultException>(device.Synchronize);

        Assert.Contains("ncclInvalidArgument", first.Message, StringComparison.Ordinal);
        Assert.Equal((first.Message, first.Message), (again.Message, waiting.Message));
    }, leaves: false);

    [Fact]
    public void Two_ranks_on_one_GPU_are_refused_on_every_rank_unless_NCCL_may_share()
    {
        CudaPlatform platform = EmulatedCuda.Platform;
        NcclTransport.LoadLibrary([EmulatedCuda.Library]);
        using var group = InProcessGroup.Create(3);
        var refusals = new FaultException[3];

        group.Run(rank =>
        {
            using var device = new CudaDevice(platform, rank % 2);
            refusals[rank] = Assert.Throws<FaultException>(() => NcclTransport.Connect(NcclRanks.SetUpOf(group, rank, device)));
        });

        Assert.All(refusals, refusal => Assert.Equal((FaultCode.Unavailable, true), (refusal.Code, refusal.IsAgreed)));
        Assert.Contains("ranks 0, 2 compute on the same GPU", refusals[1].Message, StringComparison.Ordinal);
    }

    [Fact]
    public void An_exchange_must_be_complete_before_the_next_and_odd_lengths_are_refused() => NcclRanks.Run(1, (transport, device, _) =>
    {
        Region region = Allocate(device, 6);
        Region other = Allocate(device, 6);
        transport.StartExchange(region, 0, other, 0);

        Assert.Throws<InvalidOperationException>(() => transport.StartExchange(region, 0, other, 0));
        transport.Complete();
        Assert.Throws<ArgumentException>(() => transport.AllGather(region, other.Slice(0, 5)));
        Assert.Throws<ArgumentException>(() => transport.AllReduce(region with { Type = ElementType.Byte }, ReduceOperation.Sum));
        Assert.Throws<ArgumentException>(() => transport.AllToAll(region, [20], other, [24]));
        Assert.Throws<ArgumentException>(() => transport.AllToAll(region.Slice(0, 5), [20], other, [24]));
        Assert.Throws<NotSupportedException>(() => transport.AllReduceStates(new PartialAttention(region, 2, 1)));
    });

    [Fact]
    public void Nothing_is_left_in_shared_memory()
    {
        NcclRanks.Run(2, (transport, _, _) =>
        {
            using ITransport part = transport.Split(transport.Rank, 0);
            part.Barrier();
        });

        Assert.Empty(Directory.GetFiles("/dev/shm", $"treeattn-nccl-{Environment.ProcessId:x8}*"));
    }

    private static FaultException Failure(int ranks, Action<NcclTransport, CudaDevice, IControlPlane> body)
    {
        long start = Stopwatch.GetTimestamp();
        FaultException fault = Assert.Throws<FaultException>(() => NcclRanks.Run(ranks, body));
        Assert.InRange(Stopwatch.GetElapsedTime(start), TimeSpan.Zero, TimeSpan.FromSeconds(20));
        return fault;
    }

    private static Region Allocate(CudaDevice device, int count) => device.Allocate(count * sizeof(float), ElementType.Float32);
}
