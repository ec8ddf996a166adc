using System;
using System.IO;
using System.Linq;
using System.Text;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Communication;

/// <summary>How processes of one machine come to share the memory of <see cref="PeerSlots"/>.</summary>
public static class NodeMemory
{
    /// <summary>Memory that all ranks of a control plane share; they are on one machine. Every rank calls it.</summary>
    /// <returns>Null on every rank when it cannot be had on some rank.</returns>
    public static IPeerMemory? Share(IControlPlane control, long bytesPerRank)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytesPerRank);
        return Share(
            control.Rank, control.Size, polite: control.Size > Environment.ProcessorCount, bytesPerRank,
            path => Encoding.UTF8.GetString(control.AllGather(Encoding.UTF8.GetBytes(path))[0]),
            mine => control.AllGather(new[] { mine ? (byte)1 : (byte)0 }).All(answer => answer[0] == 1));
    }

    /// <summary>Rank 0 creates a file, all map it, and its name is gone before this returns: a killed job leaves nothing behind.</summary>
    /// <param name="rank">This rank.</param>
    /// <param name="size">Number of ranks.</param>
    /// <param name="polite">There are more ranks than cores.</param>
    /// <param name="bytesPerRank">Bytes of a slot.</param>
    /// <param name="broadcast">Gives every rank the text of rank 0.</param>
    /// <param name="all">Whether it is true on every rank.</param>
    /// <param name="whileWaiting">Called now and then while a peer is awaited; throws when waiting is pointless.</param>
    /// <returns>Null on every rank when it cannot be had on some rank: no room, or containers that share no folder.</returns>
    internal static IPeerMemory? Share(
        int rank, int size, bool polite, long bytesPerRank, Func<string, string> broadcast, Func<bool, bool> all, Action? whileWaiting = null)
    {
        long bytes = PeerSlots.BytesFor(size, bytesPerRank);
        string path = "";
        SharedMapping? mapping = null;
        try
        {
            mapping = rank == 0 ? TryCreate(bytes, out path) : null;
            path = broadcast(path);
            mapping ??= path.Length > 0 ? TryAttach(path, bytes) : null;
            if (!all(mapping != null))
            {
                return null;
            }

            Action unmap = mapping!.Dispose;
            var slots = new PeerSlots(mapping.Address, rank, size, bytesPerRank, polite, whileWaiting, unmap);
            mapping = null;
            return slots;
        }
        finally
        {
            mapping?.Dispose();
            if (rank == 0 && path.Length > 0)
            {
                SharedMapping.Remove(path);
            }
        }
    }

    private static SharedMapping? TryCreate(long bytes, out string path)
    {
        path = "";
        try
        {
            return SharedMapping.Create(bytes, out path);
        }
        catch (IOException)
        {
            path = "";
            return null;
        }
    }

    private static SharedMapping? TryAttach(string path, long bytes)
    {
        try
        {
            return SharedMapping.Attach(path, bytes);
        }
        catch (IOException)
        {
            return null;
        }
    }
}
