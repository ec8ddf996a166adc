using System;
using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text;
using System.Threading;

namespace TreeAttention.Communication.Control;

/// <summary>One connection of the control plane: frames out from any thread, frames in on one.</summary>
internal sealed class ControlLink : IDisposable
{
    internal const int HeaderBytes = 5;
    private const int MostFrameBytes = 64 << 20;

    private readonly Socket _socket;
    private readonly Traffic _traffic;
    private readonly Lock _sending = new();
    private byte[] _received = new byte[4096];
    private int _first;
    private int _end;
    private byte[] _frame = new byte[256];

    internal ControlLink(Socket socket, int rank, string place, Traffic traffic)
    {
        _socket = socket;
        _socket.NoDelay = true;
        _socket.SendTimeout = 2000;
        _traffic = traffic;
        Rank = rank;
        Place = place;
        LastHeard = Environment.TickCount64;
    }

    internal Socket Socket => _socket;

    /// <summary>The rank at the other end.</summary>
    internal int Rank { get; }

    /// <summary>Host and process of the other end.</summary>
    internal string Place { get; }

    /// <summary>Milliseconds of the monotonic clock.</summary>
    internal long LastHeard { get; set; }

    /// <summary>The other end said goodbye: what follows is no fault.</summary>
    internal bool HasLeft { get; set; }

    /// <summary>When the connection ended without a goodbye; null while it has not.</summary>
    internal long? LostAt { get; set; }

    internal bool IsOpen => !HasLeft && LostAt == null;

    /// <summary>The other end has sent a heartbeat.</summary>
    internal bool HasBeaten { get; private set; }

    internal long Count { get; private set; }

    internal TimeSpan Standing { get; private set; }

    internal string? Operation { get; private set; }

    /// <summary>Sends a frame. A broken connection is not told here: the reader notices it.</summary>
    internal void Send(ControlFrame kind, ReadOnlySpan<byte> payload)
    {
        lock (_sending)
        {
            int bytes = HeaderBytes + payload.Length;
            if (_frame.Length < bytes)
            {
                _frame = new byte[bytes];
            }

            BinaryPrimitives.WriteInt32LittleEndian(_frame, payload.Length);
            _frame[4] = (byte)kind;
            payload.CopyTo(_frame.AsSpan(HeaderBytes));
            try
            {
                for (int sent = 0; sent < bytes;)
                {
                    sent += _socket.Send(_frame.AsSpan(sent, bytes - sent), SocketFlags.None);
                }

                _traffic.CountControl(bytes);
            }
            catch (Exception error) when (error is SocketException or ObjectDisposedException)
            {
                return;
            }
        }
    }

    /// <summary>No more frames will be sent; the other end sees the end of the stream.</summary>
    internal void EndSending()
    {
        try
        {
            _socket.Shutdown(SocketShutdown.Send);
        }
        catch (Exception error) when (error is SocketException or ObjectDisposedException)
        {
            return;
        }
    }

    /// <summary>Takes what has arrived. Called when the socket is readable, or with a receive time-out set.</summary>
    /// <returns>False at the end of the connection.</returns>
    internal bool Fill()
    {
        if (_end == _received.Length)
        {
            if (_first > 0)
            {
                _received.AsSpan(_first, _end - _first).CopyTo(_received);
                (_first, _end) = (0, _end - _first);
            }
            else
            {
                Array.Resize(ref _received, 2 * _received.Length);
            }
        }

        try
        {
            int bytes = _socket.Receive(_received.AsSpan(_end), SocketFlags.None);
            _end += bytes;
            LastHeard = Environment.TickCount64;
            return bytes > 0;
        }
        catch (Exception error) when (error is SocketException or ObjectDisposedException)
        {
            return false;
        }
    }

    /// <summary>Takes the next whole frame out of what has arrived; the payload is valid until the next <see cref="Fill"/>.</summary>
    internal bool TryTake(out ControlFrame kind, out ReadOnlySpan<byte> payload)
    {
        kind = default;
        payload = default;
        if (_end - _first < HeaderBytes)
        {
            return false;
        }

        int bytes = BinaryPrimitives.ReadInt32LittleEndian(_received.AsSpan(_first));
        if (bytes is < 0 or > MostFrameBytes)
        {
            throw new FaultException(FaultCode.CommunicationFault, $"The control connection to rank {Rank} ({Place}) sent a frame of {bytes} bytes.");
        }

        if (_end - _first - HeaderBytes < bytes)
        {
            return false;
        }

        kind = (ControlFrame)_received[_first + 4];
        payload = _received.AsSpan(_first + HeaderBytes, bytes);
        _first += HeaderBytes + bytes;
        return true;
    }

    /// <summary>Takes over a heartbeat.</summary>
    internal void Hear(ReadOnlySpan<byte> beat)
    {
        HasBeaten = true;
        (Count, Standing) = ControlBeat.Read(beat);
        Operation = ControlBeat.ReadOperation(beat, Operation);
    }

    internal RankPulse PulseAt(long now) => new(Rank, Place, Count, Operation, Standing, TimeSpan.FromMilliseconds(now - LastHeard), HasLeft, HasBeaten);

    public void Dispose() => _socket.Dispose();
}

/// <summary>What travels on the control plane: four bytes of length, one byte of kind, then the payload.</summary>
internal enum ControlFrame : byte
{
    /// <summary>First of a connection: token, rank, process, host.</summary>
    Hello = 1,

    /// <summary>Operations entered, milliseconds in this state, name of the operation.</summary>
    Beat,

    /// <summary>One rank's part of an agreement: number of the agreement, bytes.</summary>
    Part,

    /// <summary>All parts: number of the agreement, then each part with its length.</summary>
    Parts,

    /// <summary>A fault: code, reason. The group ends.</summary>
    Abort,

    /// <summary>The end of this connection is no fault.</summary>
    Goodbye,
}

/// <summary>The payload of a heartbeat: operations entered (8 bytes), milliseconds in this state (4), name of the operation (may be empty).</summary>
internal static class ControlBeat
{
    internal const int MostBytes = 128;
    private const int NameAt = 12;

    /// <summary>Writes a beat and returns its length. A long name is cut.</summary>
    internal static int Write(Span<byte> beat, long count, TimeSpan standing, string? operation)
    {
        BinaryPrimitives.WriteInt64LittleEndian(beat, count);
        BinaryPrimitives.WriteInt32LittleEndian(beat[8..], (int)Math.Min(standing.TotalMilliseconds, int.MaxValue));
        Encoding.UTF8.TryGetBytes(operation.AsSpan(0, Math.Min(operation?.Length ?? 0, (MostBytes - NameAt) / 3)), beat[NameAt..], out int bytes);
        return NameAt + bytes;
    }

    internal static (long Count, TimeSpan Standing) Read(ReadOnlySpan<byte> beat) =>
        (BinaryPrimitives.ReadInt64LittleEndian(beat), TimeSpan.FromMilliseconds(BinaryPrimitives.ReadInt32LittleEndian(beat[8..])));

    /// <summary>The name of the operation; the known string where it has not changed, so that beats allocate nothing.</summary>
    internal static string? ReadOperation(ReadOnlySpan<byte> beat, string? known)
    {
        ReadOnlySpan<byte> name = beat[NameAt..];
        Span<char> characters = stackalloc char[MostBytes];
        int length = Encoding.UTF8.GetChars(name, characters);
        return name.IsEmpty ? null
            : known != null && characters[..length].SequenceEqual(known) ? known
            : new string(characters[..length]);
    }
}
