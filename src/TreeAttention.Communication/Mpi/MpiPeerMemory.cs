using System;
using System.IO;
using System.Text;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Communication;

/// <summary>How processes of one machine come to share the memory of <see cref="PeerSlots"/>.</summary>
internal static unsafe class MpiPeerMemory
{
    private const int MostPathBytes = 1024;

    /// <summary>Rank 0 creates a file, all map it, and its name is gone before this returns: a killed job leaves nothing behind.</summary>
    /// <returns>Null on every rank when it cannot be had on some rank: no room, or containers that share no folder.</returns>
    internal static IPeerMemory? Share(MpiChannel channel, long bytesPerRank)
    {
        long bytes = PeerSlots.BytesFor(channel.Size, bytesPerRank);
        string path = "";
        SharedMapping? mapping = null;
        try
        {
            mapping = channel.Rank == 0 ? TryCreate(bytes, out path) : null;
            path = Broadcast(channel, path);
            mapping ??= path.Length > 0 ? TryAttach(path, bytes) : null;
            if (!EveryRankHas(channel, mapping))
            {
                return null;
            }

            Action unmap = mapping!.Dispose;
            var slots = new PeerSlots(
                mapping.Address, channel.Rank, channel.Size, bytesPerRank, channel.IsPolite, whileWaiting: null, unmap);
            mapping = null;
            return slots;
        }
        finally
        {
            mapping?.Dispose();
            if (channel.Rank == 0 && path.Length > 0)
            {
                SharedMapping.Remove(path);
            }
        }
    }

    private static bool EveryRankHas(MpiChannel channel, SharedMapping? mapping)
    {
        float missing = mapping == null ? 1 : 0;
        channel.AllReduceFloats((nint)(&missing), 1, channel.Library.Constants.Max);
        return missing == 0;
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

    private static string Broadcast(MpiChannel channel, string path)
    {
        byte[] message = new byte[MostPathBytes];
        Encoding.UTF8.GetBytes(path, message);
        fixed (byte* address = message)
        {
            channel.Broadcast((nint)address, MostPathBytes, root: 0);
        }

        return Encoding.UTF8.GetString(message).TrimEnd('\0');
    }
}
