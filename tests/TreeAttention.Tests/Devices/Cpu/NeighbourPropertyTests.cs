using System;
using System.Collections.Generic;
using System.Linq;
using CsCheck;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>The law of reproducible bits: those of a row are those of its own keys, queries and options, whatever stands beside it.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class NeighbourPropertyTests
{
    private static readonly Gen<(int Seed, int Keys, int Queries, int Arrangement, int Ranks)> _calls =
        Gen.Select(Gen.Int[0, 1 << 20], Gen.Int[1, 1300], Gen.Int[1, 70], Gen.Int[0, 4], Gen.Int[1, 3]);

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void On_a_CPU_a_row_has_the_same_bits_beside_any_neighbours(int bits) => _calls.Sample(
        call => AssertOwnBits(call.Seed, call.Keys, call.Queries, call.Arrangement, call.Ranks, () => CpuWidths.Create(bits, 1 + (call.Seed % 2))),
        iter: 80, threads: 1);

    [Fact]
    public void On_a_GPU_a_row_has_the_same_bits_beside_any_neighbours()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice(); // skips where there is none
        _calls.Sample(
            call => AssertOwnBits(call.Seed, 1 + (call.Keys / 3), 1 + (call.Queries / 2), call.Arrangement, 1, () => EmulatedCuda.CreateDevice()),
            iter: 12, threads: 1);
    }

    private static void AssertOwnBits(int seed, int keys, int queries, int arrangement, int ranks, Func<IDevice> create)
    {
        var random = new Random(seed);
        OwnRow own = RowOf(random, keys, Math.Min(queries, keys));
        float[] expected = new RowsOfCall([own], random).Batched(false, 1, create)[0];

        foreach ((int query, float[] bits) in Arranged(own, random, arrangement, ranks, create))
        {
            float[] due = query < 0 ? expected : OfQuery(own, expected, query);
            Assert.Equal(due.Select(BitConverter.SingleToInt32Bits), bits.Select(BitConverter.SingleToInt32Bits));
        }
    }

    // The row's bits, or those of one of its queries.
    private static IEnumerable<(int Query, float[] Bits)> Arranged(OwnRow own, Random random, int arrangement, int ranks, Func<IDevice> create)
    {
        OwnRow before = own.Neighbour(random, random.Next(1, 90), random.Next(1, 1100));
        OwnRow after = own.Neighbour(random, random.Next(1, 20), random.Next(1, 700));
        var call = new RowsOfCall([before, own, after], random);
        if (arrangement == 0)
        {
            yield return (-1, call.Batched(false, ranks, create)[1]);
        }
        else if (arrangement == 1)
        {
            yield return (-1, call.Batched(true, ranks, create)[1]);
        }
        else if (arrangement == 2)
        {
            yield return (-1, call.Packed(ranks, create)[1]);
        }
        else if (own.Options.Causal && own.TailMask is null)
        {
            // As decoding had it: the later keys were not there.
            int query = random.Next(own.Queries);
            OwnRow then = own.AsOf(query);
            yield return (query, new RowsOfCall(arrangement == 3 ? [then] : [before, then, after], random).Batched(false, ranks, create)[arrangement == 3 ? 0 : 1]);
        }
        else
        {
            yield return (-1, call.Packed(ranks, create)[1]);
        }
    }

    private static float[] OfQuery(OwnRow own, float[] bits, int query)
    {
        int width = own.QueryHeads * own.ValueDim;
        int lse = own.Queries * width;
        return
        [
            .. bits[(query * width)..((query + 1) * width)],
            .. bits[(lse + (query * own.QueryHeads))..(lse + ((query + 1) * own.QueryHeads))],
        ];
    }

    private static OwnRow RowOf(Random random, int keys, int queries)
    {
        (int queryHeads, int kvHeads) = new[] { (2, 2), (4, 1), (6, 2), (9, 3) }[random.Next(4)];
        (int headDim, int valueDim) = new[] { (8, 8), (20, 12), (33, 40), (64, 64), (128, 72) }[random.Next(5)];
        int tail = random.Next(4) == 0 ? random.Next(1, 30) : 0;
        return new OwnRow
        {
            Queries = queries,
            Keys = keys,
            QueryHeads = queryHeads,
            KvHeads = kvHeads,
            HeadDim = headDim,
            ValueDim = valueDim,
            Type = new[] { ElementType.Float32, ElementType.Float32, ElementType.Float16, ElementType.BFloat16 }[random.Next(4)],
            Options = new AttentionOptions
            {
                Causal = random.Next(3) > 0,
                WindowLeft = random.Next(3) == 0 ? random.Next(0, 800) : -1,
                LocalChunk = random.Next(5) == 0 ? random.Next(1, 700) : 0,
                Softcap = random.Next(4) == 0 ? 15 : 0,
                AlibiSlopes = random.Next(4) == 0 ? [.. Enumerable.Range(0, queryHeads).Select(head => MathF.Pow(2, -head))] : null,
                Sinks = random.Next(4) == 0 ? OwnRow.Numbers(random, queryHeads, 1) : null,
            },
            TailMask = tail == 0 ? null : [.. Enumerable.Range(0, queries * tail).Select(_ => random.Next(3) > 0)],
            Query = OwnRow.Numbers(random, queries * queryHeads * headDim, 1),
            Key = OwnRow.Numbers(random, keys * kvHeads * headDim, 1, outliers: true),
            Value = OwnRow.Numbers(random, keys * kvHeads * valueDim, 1),
        };
    }
}
