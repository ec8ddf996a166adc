using System;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Ranks;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary>Host regions over NCCL: what every transport does.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class NcclTransportTests : TransportConformance
{
    private protected override void RunOnEachRank(int ranks, Action<ITransport> body) => NcclRanks.Run(ranks, (transport, _, _) => body(transport));
}
