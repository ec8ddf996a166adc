using System;

namespace TreeAttention.Communication;

/// <summary>Messages under way: begun piece by piece, waited for together. Its room is kept from use to use.</summary>
internal sealed class MpiRequests
{
    private nint[] _requests = new nint[16];
    private long _bytes;

    /// <summary>Pieces under way.</summary>
    internal int Count { get; private set; }

    internal void Send(MpiChannel channel, nint address, long bytes, int to, int tag)
    {
        for (long done = 0; done < bytes; done += channel.PieceBytes)
        {
            Add(channel.BeginSend(address + (nint)done, (int)Math.Min(channel.PieceBytes, bytes - done), to, tag));
        }

        _bytes += bytes;
    }

    internal void Receive(MpiChannel channel, nint address, long bytes, int from, int tag)
    {
        for (long done = 0; done < bytes; done += channel.PieceBytes)
        {
            Add(channel.BeginReceive(address + (nint)done, (int)Math.Min(channel.PieceBytes, bytes - done), from, tag));
        }

        _bytes += bytes;
    }

    /// <summary>Waits for all of them, oldest first.</summary>
    internal void WaitAll(MpiChannel channel, string operation)
    {
        try
        {
            for (int i = 0; i < Count; i++)
            {
                channel.Wait(_requests[i], operation, _bytes);
            }
        }
        finally
        {
            Count = 0;
            _bytes = 0;
        }
    }

    private void Add(nint request)
    {
        if (Count == _requests.Length)
        {
            Array.Resize(ref _requests, 2 * Count);
        }

        _requests[Count++] = request;
    }
}
