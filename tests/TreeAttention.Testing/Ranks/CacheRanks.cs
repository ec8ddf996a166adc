using System;
using TreeAttention.Communication.InProcess;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Testing.Ranks;

/// <summary>In-process ranks with CPU devices of one thread.</summary>
internal static class CacheRanks
{
    public static void Run(int ranks, Action<RankContext> body)
    {
        using var group = InProcessGroup.Create(ranks);
        group.Run(rank =>
        {
            using var device = new CpuDevice(1);
            body(new RankContext(group.Transports[rank], device, group.Controls[rank]));
        });
    }
}
