using System;
using TreeAttention.Distributed.Ports;
using TreeAttention.Tests.Cuda;
using TreeAttention.Tests.InProcess;
using Xunit;

namespace TreeAttention.Tests.Nccl;

/// <summary>Host regions over NCCL: what every transport does.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class NcclTransportTests : TransportConformance
{
    protected override void RunOnEachRank(int ranks, Action<ITransport> body) => NcclRanks.Run(ranks, (transport, _, _) => body(transport));
}
