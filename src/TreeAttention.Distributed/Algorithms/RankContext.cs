namespace TreeAttention.Distributed;

/// <summary>What one rank works with: how it talks to the others, what it computes on, and who watches it.</summary>
/// <param name="Transport">The data plane.</param>
/// <param name="Device">The rank's device.</param>
/// <param name="Control">The control plane.</param>
public sealed record RankContext(ITransport Transport, IDevice Device, IControlPlane Control);
