using System;
using System.Diagnostics;
using System.Globalization;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

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

        // Merging again and again would let the sums grow without bound: each call begins with the same state.
        float[] first = state.Region.AsSpan<float>().ToArray();
        using var zeros = new HostMemory(4L * floats, ElementType.Float32);
        double[] bare = new double[Blocks * CallsOfBlock];
        double[] round = new double[Blocks * CallsOfBlock];
        double[] merged = new double[Blocks * CallsOfBlock];
        double[] fused = new double[Blocks * CallsOfBlock];
        for (int block = 0; block < Blocks; block++)
        {
            Time(transport, bare, block, Renew, () => transport.AllReduce(zeros.Region, ReduceOperation.Sum));
            Time(transport, round, block, Renew, () => OneShot(peers, state, merge: false, transport.Rank, transport.Size));
            Time(transport, merged, block, Renew, () => OneShot(peers, state, merge: true, transport.Rank, transport.Size));
            Time(transport, fused, block, Renew, () => transport.AllReduceStates(state));
        }

        void Renew() => first.CopyTo(state.Region.AsSpan<float>());

        if (transport.Rank == 0)
        {
            Console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"{floats} floats, {transport.Size} ranks, median of {bare.Length} calls: bare all-reduce (sum) {Median(bare):F2} us, one-shot round "
                + $"{Median(round):F2} us ({Median(round) / Median(bare):F2}), with merge {Median(merged):F2} us, fused {Median(fused):F2} us"));
        }
    }

    private static void OneShot(IPeerMemory peers, PartialAttention state, bool merge, int self, int size)
    {
        const int outputs = Rows * ValueDim;
        state.Region.AsSpan<float>().CopyTo(peers.Mine.AsSpan<float>());
        peers.Publish();
        peers.AwaitAll();
        for (int rank = 0; rank < size; rank++)
        {
            ReadOnlySpan<float> floats = peers.SlotOf(rank).AsSpan<float>();
            if (rank != self && merge)
            {
                PartialMerge.Fold(
                    state.Output, state.Max, state.Sum, floats[..outputs], floats.Slice(outputs, Rows), floats[(outputs + Rows)..], ValueDim);
            }
            else if (rank != self)
            {
                floats.CopyTo(state.Region.AsSpan<float>());
            }
        }

        peers.NextRound();
    }

    private static void Time(ITransport transport, double[] times, int block, Action prepare, Action call)
    {
        for (int i = 0; i < CallsOfBlock; i++)
        {
            prepare();
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
