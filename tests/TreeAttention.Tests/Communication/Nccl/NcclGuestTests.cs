using System;
using System.Threading;
using TreeAttention.Communication.Nccl;
using TreeAttention.Devices.Cuda;
using TreeAttention.Interop.Nccl;
using TreeAttention.Runtime.Groups;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Tests.Devices.Cuda;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary>Groups over NCCL communicators of a caller that has GPUs, streams and tensors of its own.</summary>
[Collection(EmulatedGpu.Name)]
public sealed unsafe class NcclGuestTests
{
    private static readonly ProcessEnvironment _environment = ProcessEnvironment.Read() with
    {
        Cuda = DeviceSource.Emulated,
        CudaLibrary = EmulatedCuda.Library,
        CacheFolder = EmulatedCuda.CacheFolder,
    };

    [Theory, InlineData(1), InlineData(2), InlineData(3)]
    public void Ranks_of_a_callers_communicator_decode_over_its_tensors_and_it_goes_on_with_it(int ranks)
    {
        var decode = new DecodeCase("guest") { Before = [1100, 40], QueryHeads = 2, KvHeads = 1 };

        Run(ranks, (communicator, device) =>
        {
            using var caller = new CallerStream(device);
            (float[] key, float[] value) = decode.LastTokens();
            DeviceTensor query = caller.Arrives(decode.Query, ElementType.Float32);
            DeviceTensor keys = caller.Arrives(key, ElementType.Float32), values = caller.Arrives(value, ElementType.Float32);
            DeviceTensor output = caller.Room(decode.Query.Length, ElementType.Float32), lse = caller.Room(4, ElementType.Float32);
            using (AttentionGroup group = GuestGroup.JoinNccl(communicator, new GroupOptions(), _environment))
            {
                using ShardedKvCache cache = group.CreateCache(decode.CacheOptions);
                decode.Fill(cache, 600);
                using DecodeStep step = group.CreateStep(cache, decode.DecodeOptions());

                group.Decode(step, 0, query, keys, values, output, lse, caller.Handle, TestContext.Current.CancellationToken);
                VerificationReport report = decode.Check(caller.Read(output), caller.Read(lse));

                Assert.True(report.Wrong == 0, report.WorstRow);
                Assert.Equal(ranks, group.Size);
                Assert.Contains("NCCL", group.Description, StringComparison.Ordinal);
            }

            DeviceTensor sum = caller.Arrives([1, 2], ElementType.Float32);
            device.EnterStream();
            Await(communicator, NcclNative.ncclAllReduce(
                (void*)sum.Address, (void*)sum.Address, 2, ncclDataType_t.ncclFloat32, ncclRedOp_t.ncclSum, communicator, caller.Handle));
            Assert.Equal([ranks, 2f * ranks], caller.Read(sum));
        });
    }

    [Fact]
    public void A_rank_that_ends_the_group_is_an_exception_on_the_others()
    {
        var seen = new Exception?[2];

        Run(2, (communicator, _) =>
        {
            using AttentionGroup group = GuestGroup.JoinNccl(communicator, new GroupOptions(), _environment);
            if (group.Rank == 1)
            {
                group.Context.Control.Abort(FaultCode.Interrupted, "enough");
            }

            // An agreement that was under way may still come about.
            seen[group.Rank] = Record.Exception(() =>
            {
                while (group.Gather(1).Length == 2)
                {
                    Thread.Yield();
                }
            });
        });

        Assert.All(seen, error => Assert.Equal(FaultCode.Interrupted, Assert.IsType<FaultException>(error).Code));
    }

    [Fact]
    public void What_is_no_communicator_and_what_does_not_fit_it_is_refused()
    {
        _ = EmulatedCuda.Platform;

        FaultException none = Assert.Throws<FaultException>(() => GuestGroup.JoinNccl(0, new GroupOptions(), _environment));
        FaultException onCpu = Assert.Throws<FaultException>(() => GuestGroup.JoinNccl(1, new GroupOptions { Device = DeviceKind.Cpu }, _environment));
        Run(1, (communicator, _) =>
        {
            FaultException size = Assert.Throws<FaultException>(() => GuestGroup.JoinNccl(communicator, new GroupOptions { Ranks = 2 }, _environment));
            Assert.Equal(FaultCode.CommandLine, size.Code);
        });

        Assert.Equal((FaultCode.CommandLine, FaultCode.CommandLine), (none.Code, onCpu.Code));
    }

    // A thread for each rank, as a program that knows nothing of ours has them.
    private static void Run(int ranks, Action<nint, CudaDevice> body)
    {
        _ = EmulatedCuda.Platform;
        NcclTransport.LoadLibrary([EmulatedCuda.Library]);
        ncclUniqueId id;
        Assert.Equal(ncclResult_t.ncclSuccess, NcclNative.ncclGetUniqueId(&id));
        ncclUniqueId same = id;
        var failures = new Exception?[ranks];
        var threads = new Thread[ranks];
        for (int rank = 0; rank < ranks; rank++)
        {
            int mine = rank;
            threads[rank] = new Thread(() => failures[mine] = Record.Exception(() => RunRank(same, mine, ranks, body)));
            threads[rank].Start();
        }

        Assert.All(threads, thread => Assert.True(thread.Join(TimeSpan.FromSeconds(60)), "a rank does not end"));
        Assert.All(failures, failure => Assert.True(failure is null, $"{failure}"));
    }

    private static void RunRank(ncclUniqueId id, int rank, int ranks, Action<nint, CudaDevice> body)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice(rank);
        device.EnterStream();
        ncclConfig_t config = NcclLibrary.NonblockingConfig();
        nint communicator;
        ncclResult_t result = NcclNative.ncclCommInitRankConfig(&communicator, ranks, id, rank, &config);
        Await(communicator, result);
        body(communicator, device);
        Await(communicator, NcclNative.ncclCommFinalize(communicator));
        Assert.Equal(ncclResult_t.ncclSuccess, NcclNative.ncclCommDestroy(communicator));
    }

    private static void Await(nint communicator, ncclResult_t result)
    {
        while (result == ncclResult_t.ncclInProgress)
        {
            Thread.Yield();
            Assert.Equal(ncclResult_t.ncclSuccess, NcclNative.ncclCommGetAsyncError(communicator, &result));
        }

        Assert.Equal(ncclResult_t.ncclSuccess, result);
    }
}
