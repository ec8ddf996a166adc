using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Layout;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>The reproducible mode on a CUDA device: the bits of a result depend neither on the ranks nor on neighbours.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaLaneTests
{
    private const int Keys = 2700; // six pages, the last one short

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(200)] // most lanes without keys
    public void The_bits_of_every_page_lane_and_node_are_the_same_on_any_number_of_ranks(int ranks)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();

        float[] alone = Fold(Case(1), device);
        float[] shared = Fold(Case(ranks), device);

        Assert.Equal(alone.Select(BitConverter.SingleToInt32Bits), shared.Select(BitConverter.SingleToInt32Bits));
    }

    [Fact]
    public void The_fold_agrees_with_float64()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase inputs = Case(1);

        using var call = new DeviceCall(inputs, device);
        PartialResult whole = Assert.Single(call.AttendLanes([new LaneNode(0, LaneTree.Lanes)]));

        Assert.InRange(whole.ErrorAgainst(inputs.Expected()), 0, 1.5e-2);
    }

    [Fact]
    public void A_row_that_needs_double_precision_changes_no_bit_of_the_others()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase loud = Case(1).Change(inputs => Loudest(inputs, row: 1));

        float[] quiet = Fold(Case(1), device);
        float[] mixed = Fold(loud, device);
        float[] mixedOverRanks = Fold(Case(3).Change(inputs => Loudest(inputs, row: 1)), device);

        int row = loud.Shape.ValueDim;
        Assert.Equal(quiet.Take(row), mixed.Take(row));
        Assert.NotEqual(quiet.Skip(row).Take(row), mixed.Skip(row).Take(row));
        Assert.Equal(mixed.Select(BitConverter.SingleToInt32Bits), mixedOverRanks.Select(BitConverter.SingleToInt32Bits));
    }

    private static CpuCase Case(int ranks) => new CpuCase
    {
        Shape = new(1, 2, Keys, 2, 1, 32, 24),
        Type = ElementType.BFloat16,
        Layout = ShardLayout.Lanes,
        Ranks = ranks,
    }.Fill();

    private static void Loudest(CpuCase inputs, int row)
    {
        foreach (ref float element in inputs.Query.AsSpan(row * inputs.Shape.HeadDim, inputs.Shape.HeadDim))
        {
            element *= 1e4f;
        }
    }

    // All nodes of all ranks, folded along the rest of the tree on the host.
    private static float[] Fold(CpuCase inputs, CudaDevice device)
    {
        var all = new Dictionary<LaneNode, PartialResult>();
        for (int rank = 0; rank < inputs.Ranks; rank++)
        {
            IReadOnlyList<LaneNode> nodes = LaneTree.NodesOf(rank, inputs.Ranks);
            using var call = new DeviceCall(inputs, device, rank);
            List<PartialResult> results = call.AttendLanes(nodes);
            for (int i = 0; i < nodes.Count; i++)
            {
                all.Add(nodes[i], results[i]);
            }
        }

        using var folder = new DeviceFold(device, inputs.Rows, inputs.Shape.ValueDim);
        return folder.Fold(new LaneNode(0, LaneTree.Lanes), all);
    }
}
