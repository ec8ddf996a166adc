using System;
using System.Runtime.InteropServices;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Runtime.Groups;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Ranks;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

/// <summary>How much memory a cache takes: what is asked, what is free, and what is told when it does not suffice.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CacheCapacityTests
{
    // Longer than any memory: a page of 512 tokens takes 16 KiB.
    private static readonly CacheOptions _endless = new() { KvHeads = 1, HeadDim = 4, ValueDim = 4, MaxLength = int.MaxValue };

    [Fact]
    public void Ranks_of_a_machine_share_the_part_of_its_memory_that_is_asked_for()
    {
        const double Share = 1e-3;
        long[] bytes = new long[3];

        CacheRanks.Run(3, context =>
        {
            using var cache = new ShardedKvCache(context, _endless with { MemoryFraction = Share });
            bytes[context.Transport.Rank] = cache.Bytes;
        });

        using var device = new CpuDevice(1);
        double share = Share * device.AvailableBytes / 3;
        Assert.All(bytes, one => Assert.InRange(one, share / 2, share * 2)); // what is free changes while other tests run
    }

    [Fact]
    public void Ranks_that_share_a_GPU_share_its_memory_and_others_have_theirs()
    {
        _ = EmulatedCuda.Platform;
        long[] bytes = new long[3];
        using var group = InProcessGroup.Create(3);

        group.Run(rank =>
        {
            using CudaDevice device = EmulatedCuda.CreateDevice(rank / 2);
            using var transport = new DeviceTransport(group.Transports[rank], device);
            using var cache = new ShardedKvCache(
                new RankContext(transport, device, group.Controls[rank]), _endless with { MemoryFraction = 0.002 });
            bytes[rank] = cache.Bytes;
        });

        long whole = (4L << 30) / 500;
        Assert.InRange(bytes[0], whole / 4, whole / 2);
        Assert.Equal(bytes[0], bytes[1]);
        Assert.InRange(bytes[2], whole / 2, whole);
    }

    [Fact]
    public void No_more_is_taken_than_the_rows_can_fill_and_no_more_than_the_bytes_that_are_asked_for() => CacheRanks.Run(2, context =>
    {
        using var whole = new ShardedKvCache(context, _endless with { MaxLength = 600, MemoryFraction = 1 });
        using var some = new ShardedKvCache(context, _endless with { MemoryFraction = 1, MemoryBytes = 40_000 });

        Assert.Equal(16 << 10, whole.Bytes);
        Assert.Equal(2 * (16 << 10), some.Bytes);
    });

    [Theory]
    [InlineData(1, 1e-12, "A page of 512 tokens takes")] // less than a page
    [InlineData(1_000_000_000, 1.0, "A page of 512 tokens takes")]
    [InlineData(1_000_000_000, null, "are available")]
    public void What_does_not_fit_is_71_on_every_rank_before_anything_is_allocated(int layers, double? fraction, string message) => CacheRanks.Run(2, context =>
    {
        FaultException fault = Assert.Throws<FaultException>(
            () => new ShardedKvCache(context, _endless with { Layers = layers, MaxLength = 1024, MemoryFraction = fraction }));

        Assert.Equal((FaultCode.OutOfMemory, true), (fault.Code, fault.IsAgreed));
        Assert.Contains(message, fault.Message, StringComparison.Ordinal);
        Assert.Equal(0, context.Device.Memory.PeakBytes);
    });

    [Theory, InlineData(AttentionAlgorithm.Ring), InlineData(AttentionAlgorithm.Gather)]
    public void Keys_that_cannot_move_beside_their_cache_are_71_on_every_rank(AttentionAlgorithm algorithm) => CacheRanks.Run(2, context =>
    {
        // Of what is free each rank's cache takes a fifth, and two rooms for it twice as much.
        var large = new CacheOptions { KvHeads = 64, HeadDim = 576, ValueDim = 576, MaxLength = 512 * 100_000, MemoryFraction = 0.4 };
        using var cache = new ShardedKvCache(context, large);
        DecodeOptions Options(AttentionAlgorithm one) =>
            new() { QueryHeads = 64, Plan = new AttentionPlan(one, ReductionKind.Butterfly, QueryPlacement.Replicated) };
        long before = context.Device.Memory.Bytes;

        FaultException fault = Assert.Throws<FaultException>(() => new DecodeStep(context, cache, Options(algorithm)));

        Assert.Equal((FaultCode.OutOfMemory, true), (fault.Code, fault.IsAgreed));
        Assert.Contains("Moving the keys of the cache takes", fault.Message, StringComparison.Ordinal);
        Assert.Equal(before, context.Device.Memory.Bytes);
        using var tree = new DecodeStep(context, cache, Options(AttentionAlgorithm.Tree));
    });

    [Theory, InlineData(0.0), InlineData(1.5), InlineData(double.NaN)]
    public void A_share_of_what_is_free_lies_between_nothing_and_all(double fraction) => CacheRanks.Run(
        1, context => Assert.Throws<ShapeMismatchException>(() => new ShardedKvCache(context, _endless with { MemoryFraction = fraction })));

    [Fact]
    public void Memory_that_runs_out_where_nobody_looks_is_71_for_the_group()
    {
        var seen = new Exception?[3];

        FaultException fault = Assert.Throws<FaultException>(() => GroupLauncher.Run(
            new GroupOptions { Ranks = 3, Device = DeviceKind.Cpu, Threads = 1 }, ProcessEnvironment.Read(), group =>
            {
                seen[group.Rank] = Record.Exception(() => group.Rank == 1 ? Marshal.AllocHGlobal(nint.MaxValue) : (object)group.Gather(1));
                throw seen[group.Rank]!;
            }));

        Assert.Equal(FaultCode.OutOfMemory, fault.Code);
        Assert.Equal(FaultCode.PeerLost, Assert.IsType<FaultException>(seen[0]).Code);
    }
}
