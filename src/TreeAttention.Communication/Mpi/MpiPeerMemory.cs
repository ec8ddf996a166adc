using System.Text;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>How the ranks of a communicator agree on the memory that they share.</summary>
internal static unsafe class MpiPeerMemory
{
    private const int MostPathBytes = 1024;

    /// <summary>Memory that all ranks of the communicator share. Collective.</summary>
    /// <returns>Null on every rank when it cannot be had on some rank.</returns>
    internal static IPeerMemory? Share(MpiChannel channel, long bytesPerRank) => NodeMemory.Share(
        channel.Rank, channel.Size, channel.IsPolite, bytesPerRank, path => Broadcast(channel, path), mine => EveryRankHas(channel, mine),
        channel.WhileWaiting);

    private static bool EveryRankHas(MpiChannel channel, bool mine)
    {
        float missing = mine ? 0 : 1;
        channel.AllReduceFloats((nint)(&missing), 1, channel.Library.Constants.Max);
        return missing == 0;
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
