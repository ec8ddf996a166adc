using System;
using System.Diagnostics;
using System.Globalization;
using TreeAttention.Distributed;

namespace TreeAttention.Ranks;

/// <summary>One round of peer memory beside a bare all-reduce of the same bytes, in interleaved rounds.</summary>
internal static class LatencyMeasurement
{
    private const int Rows = 32;
    private const int ValueDim = 128;
    private const int Blocks = 60;
    private const int CallsOfBlock = 50;

    /// <summary>Prints medians in microseconds of 4,160 floats: 32 rows × 128 with max and sum.</summary>
    internal static void Print(ITransport transport)
    {
        int floats = (int)PartialAttention.FloatsFor(Rows, ValueDim);
        using var memory = new HostMemory(4L * floats, ElementType.Float32);
        using IPeerMemory peers = transport.SharePeerMemory(4L * floats)!;
        PartialAttention state = StateSample.Fill(memory, Rows, ValueDim, transport.Rank);
        double[] bare = new double[Blocks * CallsOfBlock];
        double[] round = new double[Blocks * CallsOfBlock];
        double[] merged = new double[Blocks * CallsOfBlock];
        double[] fused = new double[Blocks * CallsOfBlock];
        for (int block = 0; block < Blocks; block++)
        {
            Time(transport, bare, block, () => transport.AllReduce(state.Region, ReduceOperation.Max));
            Time(transport, round, block, () => OneShot(peers, state, merge: false, transport.Rank));
            Time(transport, merged, block, () => OneShot(peers, state, merge: true, transport.Rank));
            Time(transport, fused, block, () => transport.AllReduceStates(state));
        }

        if (transport.Rank == 0)
        {
            Console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"{floats} floats, {transport.Size} ranks, median of {bare.Length} calls: bare all-reduce {Median(bare):F2} us, one-shot round "
                + $"{Median(round):F2} us ({Median(round) / Median(bare):F2}), with merge {Median(merged):F2} us, fused {Median(fused):F2} us"));
        }
    }

    private static void OneShot(IPeerMemory peers, PartialAttention state, bool merge, int self)
    {
        state.Region.AsSpan<float>().CopyTo(peers.Mine.AsSpan<float>());
        peers.Publish();
        peers.AwaitAll();
        Region other = peers.SlotOf(1 - self);
        if (merge)
        {
            ReadOnlySpan<float> floats = other.AsSpan<float>();
            const int outputs = Rows * ValueDim;
            PartialMerge.Fold(
                state.Output, state.Max, state.Sum, floats[..outputs], floats.Slice(outputs, Rows), floats[(outputs + Rows)..], ValueDim);
        }
        else
        {
            other.AsSpan<float>().CopyTo(state.Region.AsSpan<float>());
        }

        peers.NextRound();
    }

    private static void Time(ITransport transport, double[] times, int block, Action call)
    {
        for (int i = 0; i < CallsOfBlock; i++)
        {
            transport.Barrier();
            long start = Stopwatch.GetTimestamp();
            call();
            times[(block * CallsOfBlock) + i] = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
        }
    }

    private static double Median(double[] times)
    {
        Array.Sort(times);
        return times[times.Length / 2];
    }
}
