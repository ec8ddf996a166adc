using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>The control plane of a part of a group, over that of the whole: parts agree at the same time, so all parts call alike.</summary>
/// <remarks>
/// What a rank says travels to all ranks of the whole group and is read by those of its part. A part therefore forms and agrees in
/// step with the other parts; steps themselves use the part's own transport alone.
/// </remarks>
internal sealed class PartControlPlane(IControlPlane whole, int[] members) : IControlPlane
{
    /// <inheritdoc/>
    public int Rank { get; } = Array.IndexOf(members, whole.Rank);

    /// <inheritdoc/>
    public int Size => members.Length;

    /// <inheritdoc/>
    public IReadOnlyList<byte[]> AllGather(ReadOnlyMemory<byte> mine)
    {
        IReadOnlyList<byte[]> all = whole.AllGather(mine);
        return [.. members.Select(rank => all[rank])];
    }

    /// <inheritdoc/>
    public void Enter(string operation) => whole.Enter(operation);

    /// <inheritdoc/>
    public void Leave() => whole.Leave();

    /// <inheritdoc/>
    public void Abort(FaultCode code, string reason) => whole.Abort(code, reason);

    /// <inheritdoc/>
    public void Dispose()
    {
        // The whole group's control plane outlives its parts.
    }
}
