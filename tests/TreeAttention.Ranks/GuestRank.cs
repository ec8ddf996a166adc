using System;
using System.Linq;
using System.Threading;
using TreeAttention.Distributed.Layout;

namespace TreeAttention.Ranks;

/// <summary>A program with an MPI of its own that joins groups over its own communicators, and goes on with MPI afterwards.</summary>
internal static class GuestRank
{
    private const int Heads = 4;
    private const int Dim = 16;
    private const int Context = 1100; // three pages, which two ranks share

    private static readonly ReductionKind[] _overNccl = [ReductionKind.Butterfly, ReductionKind.ThreeAllReduce, ReductionKind.AllGather];
    private static readonly ReductionKind[] _overMpi = [.. _overNccl, ReductionKind.Fused, ReductionKind.OneShot];

    /// <summary>Runs under mpiexec; what does not hold throws.</summary>
    internal static int Run(string what)
    {
        var mpi = new CallersMpi();
        try
        {
            RequireFault(FaultCode.CommandLine, () => AttentionGroup.JoinMpi(mpi.Null), "before MPI_Init");
            mpi.Init();
            RequireFault(FaultCode.CommandLine, () => AttentionGroup.JoinMpi(mpi.Null), "MPI_COMM_NULL");
            RequireFault(FaultCode.CommandLine, () => AttentionGroup.Join(new GroupOptions { Transport = TransportKind.Mpi }), "a second MPI_Init");

            // Ranks of a part are not in the order of the world.
            nint part = mpi.Split(mpi.Rank % 2, -mpi.Rank);
            if (what == "fault")
            {
                LoseOne(part);
            }
            else
            {
                Decode(part, what == "nccl");
                Decode(part, what == "nccl");
            }

            mpi.Barrier();
            mpi.Free(part);
            if (mpi.Rank == 0)
            {
                Console.WriteLine("ok guest");
            }

            mpi.Complete();
            return 0;
        }
        catch (Exception error) when (error is CheckFailedException or FaultException)
        {
            Console.Error.WriteLine($"treeattn: {error.Message}");
            return 1; // the launcher ends the others
        }
    }

    // Both parts of the world decode, each over its own numbers, with every reduction.
    private static void Decode(nint part, bool overNccl)
    {
        var options = new GroupOptions { Threads = 1, StallTimeout = TimeSpan.FromSeconds(20) };
        using var group = AttentionGroup.JoinMpi(part, overNccl ? options with { Transport = TransportKind.Nccl, Device = DeviceKind.Cuda } : options);
        Check.Equal(2, group.Size, "the size of the group");
        using AttentionGroup alone = AttentionGroup.JoinInProcess(1, new GroupOptions { Threads = 1 })[0];
        float[] expected = DecodeOn(alone, ReductionKind.Auto);
        foreach (ReductionKind reduction in overNccl ? _overNccl : _overMpi)
        {
            float[] actual = DecodeOn(group, reduction);
            float worst = actual.Zip(expected).Max(pair => Math.Abs(pair.First - pair.Second));
            Check.That(worst < 1e-5f && expected.Max() > 1e-3f, $"{reduction.Name()}: off by {worst}");
        }
    }

    // The last rank of the part fails alone while the other waits for it: that one is told, and MPI lives on.
    private static void LoseOne(nint part)
    {
        using var group = AttentionGroup.JoinMpi(part, new GroupOptions { Threads = 1 });
        using ShardedKvCache cache = group.CreateCache(CacheOptions);
        using DecodeStep step = group.CreateStep(cache, StepOptions(ReductionKind.Butterfly));
        Step(group, step);
        if (group.Rank == 1)
        {
            group.Context.Control.Abort(FaultCode.Interrupted, "this rank has had enough");
        }

        RequireFault(FaultCode.Interrupted, () => Wait(group, step), "a wait for a rank that has failed");
    }

    // Rank 1 does not step any more.
    private static void Wait(AttentionGroup group, DecodeStep step)
    {
        if (group.Rank == 1)
        {
            Thread.Sleep(500);
            group.Gather(1);
        }

        Step(group, step);
    }

    private static CacheOptions CacheOptions => new() { KvHeads = 2, HeadDim = Dim, ValueDim = Dim, MaxLength = Context + 8, Rotary = new RotaryOptions(Dim) };

    private static DecodeOptions StepOptions(ReductionKind reduction) => new()
    {
        QueryHeads = Heads,
        Attention = new AttentionOptions { Causal = true },
        Plan = new AttentionPlan(AttentionAlgorithm.Tree, reduction, QueryPlacement.Replicated),
    };

    private static float[] DecodeOn(AttentionGroup group, ReductionKind reduction)
    {
        using ShardedKvCache cache = group.CreateCache(CacheOptions);
        cache.Append(0, Numbers(1, Context * 2 * Dim), Numbers(2, Context * 2 * Dim));
        using DecodeStep step = group.CreateStep(cache, StepOptions(reduction));
        return Step(group, step);
    }

    private static float[] Step(AttentionGroup group, DecodeStep step)
    {
        float[] output = new float[Heads * Dim];
        group.Decode(step, 0, Numbers(3, Heads * Dim), Numbers(4, 2 * Dim), Numbers(5, 2 * Dim), output, new float[Heads], CancellationToken.None);
        return output;
    }

    private static float[] Numbers(int seed, int count)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => (2 * random.NextSingle()) - 1)];
    }

    private static void RequireFault(FaultCode code, Action action, string what)
    {
        try
        {
            action();
        }
        catch (FaultException fault)
        {
            Check.Equal(code, fault.Code, $"the fault of {what} ({fault.Message})");
            return;
        }

        throw new CheckFailedException($"{what} is no fault");
    }
}
