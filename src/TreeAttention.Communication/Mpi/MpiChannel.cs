using System;
using System.Text;
using TreeAttention.Distributed.Faults;
using TreeAttention.Interop.Mpi;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Communication.Mpi;

/// <summary>One communicator: its calls checked, its waits polite where ranks outnumber cores, its long messages in pieces.</summary>
/// <remarks>
/// Polite: each operation is begun without blocking, then polled with a yield between the polls. MPICH 4 never yields by itself
/// and is a thousand times slower when ranks share cores. A blocking collective does not match a non-blocking one,
/// so all ranks of a world wait alike. A polite wait also asks now and then whether there is anything left to wait for.
/// </remarks>
internal sealed unsafe class MpiChannel
{
    private const int PollsBeforeYield = 50;

    private readonly MpiConstants _mpi;

    internal MpiChannel(MpiLibrary library, nint communicator, bool polite, int pieceBytes, Action? whileWaiting = null)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(pieceBytes, sizeof(float));
        Library = library;
        _mpi = library.Constants;
        Communicator = communicator;
        IsPolite = polite;
        PieceBytes = pieceBytes;
        WhileWaiting = whileWaiting;
        int rank = 0;
        int size = 1;
        Check(MpiNative.SetErrorHandler(communicator, _mpi.ErrorsReturn), "set-up");
        Check(MpiNative.CommRank(communicator, &rank), "set-up");
        Check(MpiNative.CommSize(communicator, &size), "set-up");
        Rank = rank;
        Size = size;
        _ = LibC.YieldProcessor(); // found now: looking an entry point up allocates, and the first long wait may be in a step that must not
    }

    internal MpiLibrary Library { get; }

    internal nint Communicator { get; }

    internal bool IsPolite { get; }

    internal int PieceBytes { get; }

    /// <summary>Called now and then by polite waits; throws when waiting is pointless. Null: they wait for ever.</summary>
    internal Action? WhileWaiting { get; }

    internal int Rank { get; } = -1;

    internal int Size { get; }

    internal void Send(nint address, long bytes, int to)
    {
        for (long done = 0; done < bytes; done += PieceBytes)
        {
            int piece = (int)Math.Min(PieceBytes, bytes - done);
            if (IsPolite)
            {
                Wait(BeginSend(address + (nint)done, piece, to, MpiTags.Message), "send", bytes);
            }
            else
            {
                Check(MpiNative.Send(address + (nint)done, piece, _mpi.Byte, to, MpiTags.Message, Communicator), "send", bytes);
            }
        }
    }

    internal void Receive(nint address, long bytes, int from)
    {
        for (long done = 0; done < bytes; done += PieceBytes)
        {
            int piece = (int)Math.Min(PieceBytes, bytes - done);
            if (IsPolite)
            {
                Wait(BeginReceive(address + (nint)done, piece, from, MpiTags.Message), "receive", bytes);
            }
            else
            {
                int error = MpiNative.Recv(
                    address + (nint)done, piece, _mpi.Byte, from, MpiTags.Message, Communicator, _mpi.StatusIgnore);
                Check(error, "receive", bytes);
            }
        }
    }

    /// <summary>Begins to send one piece; the request is to be waited for.</summary>
    internal nint BeginSend(nint address, int bytes, int to, int tag)
    {
        nint request = 0;
        Check(MpiNative.Isend(address, bytes, _mpi.Byte, to, tag, Communicator, &request), "send", bytes);
        return request;
    }

    /// <summary>Begins to receive one piece; the request is to be waited for.</summary>
    internal nint BeginReceive(nint address, int bytes, int from, int tag)
    {
        nint request = 0;
        Check(MpiNative.Irecv(address, bytes, _mpi.Byte, from, tag, Communicator, &request), "receive", bytes);
        return request;
    }

    internal void Wait(nint request, string operation, long amount, string unit = "bytes")
    {
        if (!IsPolite)
        {
            Check(MpiNative.Wait(&request, _mpi.StatusIgnore), operation, amount, unit);
            return;
        }

        int done = 0;
        for (int polls = 0; done == 0; polls++)
        {
            Check(MpiNative.Test(&request, &done, _mpi.StatusIgnore), operation, amount, unit);
            if (done == 0 && polls >= PollsBeforeYield)
            {
                _ = LibC.YieldProcessor();
                WhileWaiting?.Invoke();
            }
        }
    }

    internal void Barrier()
    {
        if (!IsPolite)
        {
            Check(MpiNative.Barrier(Communicator), "barrier");
            return;
        }

        nint request = 0;
        Check(MpiNative.Ibarrier(Communicator, &request), "barrier");
        Wait(request, "barrier", 0);
    }

    internal void Broadcast(nint address, long bytes, int root, string operation = "broadcast")
    {
        for (long done = 0; done < bytes; done += PieceBytes)
        {
            int piece = (int)Math.Min(PieceBytes, bytes - done);
            nint at = address + (nint)done;
            if (!IsPolite)
            {
                Check(MpiNative.Bcast(at, piece, _mpi.Byte, root, Communicator), operation, bytes);
                continue;
            }

            nint request = 0;
            Check(MpiNative.Ibcast(at, piece, _mpi.Byte, root, Communicator, &request), operation, bytes);
            Wait(request, operation, bytes);
        }
    }

    /// <summary>In place. Elements beyond what fits a piece go in further calls.</summary>
    internal void AllReduceFloats(nint address, long count, nint operation)
    {
        int most = PieceBytes / sizeof(float);
        for (long done = 0; done < count; done += most)
        {
            int piece = (int)Math.Min(most, count - done);
            AllReduce(address + (nint)(done * sizeof(float)), piece, _mpi.Float, operation, count);
        }
    }

    /// <summary>In place, in one call.</summary>
    /// <param name="address">First element.</param>
    /// <param name="count">Elements of <paramref name="type"/>.</param>
    /// <param name="type">Datatype.</param>
    /// <param name="operation">Operator.</param>
    /// <param name="floats">What a message says about the length.</param>
    internal void AllReduce(nint address, int count, nint type, nint operation, long floats)
    {
        if (!IsPolite)
        {
            Check(MpiNative.Allreduce(_mpi.InPlace, address, count, type, operation, Communicator), "all-reduce", floats, "floats");
            return;
        }

        nint request = 0;
        int error = MpiNative.Iallreduce(_mpi.InPlace, address, count, type, operation, Communicator, &request);
        Check(error, "all-reduce", floats, "floats");
        Wait(request, "all-reduce", floats, "floats");
    }

    /// <summary>Gathers equal parts; a part longer than a piece is broadcast by its owner, piece after piece.</summary>
    internal void AllGather(nint mine, long bytes, nint all)
    {
        nint own = all + (nint)(Rank * bytes);
        if (bytes > PieceBytes)
        {
            Buffer.MemoryCopy((void*)mine, (void*)own, bytes, bytes);
            for (int rank = 0; rank < Size; rank++)
            {
                Broadcast(all + (nint)(rank * bytes), bytes, rank, "all-gather");
            }

            return;
        }

        bool inPlace = mine == own;
        nint source = inPlace ? _mpi.InPlace : mine;
        int count = (int)bytes;
        if (!IsPolite)
        {
            Check(MpiNative.Allgather(source, count, _mpi.Byte, all, count, _mpi.Byte, Communicator), "all-gather", bytes);
            return;
        }

        nint request = 0;
        int error = MpiNative.Iallgather(source, count, _mpi.Byte, all, count, _mpi.Byte, Communicator, &request);
        Check(error, "all-gather", bytes);
        Wait(request, "all-gather", bytes);
    }

    internal void Check(int error, string operation, long amount = 0, string unit = "bytes")
    {
        if (error != 0)
        {
            throw Failure(error, operation, amount, unit);
        }
    }

    private FaultException Failure(int error, string operation, long amount, string unit)
    {
        int errorClass = 0;
        int length = 0;
        byte* text = stackalloc byte[MpiConstants.MaxErrorString];
        bool classified = MpiNative.ErrorClass(error, &errorClass) == 0;
        string name = _mpi.ErrorClassName(classified ? errorClass : error);
        string reason = MpiNative.ErrorString(error, text, &length) == 0
            ? Encoding.UTF8.GetString(text, length).TrimEnd('\0', '\n', ' ').Replace("\n", "; ", StringComparison.Ordinal)
            : $"error {error}";
        string what = amount > 0 ? $"{operation} of {amount:N0} {unit}" : operation;
        string wayOut = name is "MPI_ERR_TRUNCATE" or "MPI_ERR_COUNT"
            ? "The ranks disagree on the length: start every rank with the same arguments and inputs."
            : $"Look for the launcher's own messages about other ranks; to run without MPI, use {Setting.TransportInProcess}.";
        return new FaultException(
            FaultCode.CommunicationFault,
            $"Rank {Rank} of {Size}: {what} failed with {name}: {reason.TrimEnd('.')}. {wayOut}")
        { Rank = Rank };
    }
}

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

/// <summary>The tags of messages. Between two ranks messages of one tag keep their order; they need no more than that.</summary>
internal static class MpiTags
{
    /// <summary>Sends, receives and exchanges.</summary>
    internal const int Message = 1;

    /// <summary>Parts of an all-to-all, which must not meet a receive that was posted before it.</summary>
    internal const int AllToAll = 2;
}
