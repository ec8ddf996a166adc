using System;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>What every device promises of merging, tried on states as ranks exchange them.</summary>
internal static class DeviceLaws
{
    private const int Rows = 37;
    private const int ValueDim = 19;

    /// <summary>Two states merge to the same bits in either order, with rows among them that no key or one side alone was seen of.</summary>
    public static bool MergeCommutes(IDevice device)
    {
        byte[] oneWay = Merged(device, 1, 2);
        byte[] otherWay = Merged(device, 2, 1);
        byte[] another = Merged(device, 1, 3);
        return oneWay.AsSpan().SequenceEqual(otherWay) && !oneWay.AsSpan().SequenceEqual(another);
    }

    private static byte[] Merged(IDevice device, int into, int from)
    {
        using var host = new HostMemory(PartialAttention.FloatsFor(Rows, ValueDim) * sizeof(float), ElementType.Float32);
        Region[] regions = [device.Allocate(host.Region.Bytes, ElementType.Float32), device.Allocate(host.Region.Bytes, ElementType.Float32)];
        foreach ((int seed, Region region) in ((int, Region)[])[(into, regions[0]), (from, regions[1])])
        {
            Fill(new PartialAttention(host.Region, Rows, ValueDim), new Random(seed));
            device.Copy(host.Region, region);
            device.Synchronize();
        }

        device.Merge(new PartialAttention(regions[0], Rows, ValueDim), new PartialAttention(regions[1], Rows, ValueDim));
        device.Copy(regions[0], host.Region);
        device.Synchronize();
        device.Free(regions[0]);
        device.Free(regions[1]);
        return host.Region.AsSpan<byte>().ToArray();
    }

    private static void Fill(PartialAttention state, Random random)
    {
        state.Clear();
        for (int row = 0; row < Rows; row++)
        {
            if (random.Next(4) > 0)
            {
                state.Max[row] = (random.NextSingle() * 40) - 20;
                state.Sum[row] = 1 + (random.NextSingle() * 100);
                foreach (ref float value in state.Output.Slice(row * ValueDim, ValueDim))
                {
                    value = (random.NextSingle() * 2) - 1;
                }
            }
        }
    }
}
