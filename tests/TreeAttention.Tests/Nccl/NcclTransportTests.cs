using System;
using TreeAttention.Distributed;
using Xunit;

namespace TreeAttention.Tests;

/// <summary>Host regions over NCCL: what every transport does.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class NcclTransportTests : TransportConformance
{
    protected override void RunOnEachRank(int ranks, Action<ITransport> body) => NcclRanks.Run(ranks, (transport, _, _) => body(transport));
}
