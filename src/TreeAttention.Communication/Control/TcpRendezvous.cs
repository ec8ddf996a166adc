using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.Linq;
using System.Net;
using System.Net.Sockets;
using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>Where processes meet that no MPI started: rank 0 listens at an address that all were told, and gives a few bytes to each.</summary>
/// <remarks>It is what <see cref="TcpControlPlane.Connect"/> takes in place of a broadcast by MPI. Whoever reaches the port gets the bytes: use it inside a cluster.</remarks>
public sealed class TcpRendezvous
{
    private const int MostBytes = 1 << 20;
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(60);

    private readonly string _host;
    private readonly int _port;
    private readonly int _rank;
    private readonly int _size;

    /// <summary>One rank's view.</summary>
    /// <param name="address">Host and port of rank 0: <c>node17:29400</c>, <c>127.0.0.1:29400</c>, <c>[::1]:29400</c>.</param>
    /// <param name="rank">This rank.</param>
    /// <param name="size">Number of ranks.</param>
    /// <exception cref="FaultException">The address is none (2).</exception>
    public TcpRendezvous(string address, int rank, int size)
    {
        int colon = address.LastIndexOf(':');
        if (colon <= 0 || !int.TryParse(address[(colon + 1)..], NumberStyles.None, CultureInfo.InvariantCulture, out _port) || _port is 0 or > 65535)
        {
            throw new FaultException(
                FaultCode.CommandLine, $"'{address}' is no address to meet at: give the host of rank 0 and a free port, as in TREEATTN_RENDEZVOUS=node17:29400.")
            { IsAgreed = true };
        }

        (_host, _rank, _size) = (address[..colon].Trim('[', ']'), rank, size);
    }

    /// <summary>The address is one of this machine alone: so all ranks are on it.</summary>
    public bool IsLoopback => _host == "localhost" || (IPAddress.TryParse(_host, out IPAddress? address) && IPAddress.IsLoopback(address));

    /// <summary>Gives every rank the bytes of rank 0. Every rank calls it.</summary>
    /// <param name="bytes">Looked at on rank 0 only.</param>
    /// <exception cref="FaultException">Not all ranks came within a minute (201), or the port is taken (69).</exception>
    public byte[] Broadcast(byte[] bytes)
    {
        if (_rank == 0)
        {
            Give(bytes);
            return bytes;
        }

        return Take();
    }

    private void Give(byte[] bytes)
    {
        using Socket listener = Listen();
        byte[] message = new byte[sizeof(int) + bytes.Length];
        BinaryPrimitives.WriteInt32LittleEndian(message, bytes.Length);
        bytes.CopyTo(message, sizeof(int));
        HashSet<int> missing = [.. Enumerable.Range(1, _size - 1)];
        for (var clock = Stopwatch.StartNew(); missing.Count > 0;)
        {
            TimeSpan left = _limit - clock.Elapsed;
            if (left <= TimeSpan.Zero || !listener.Poll(left, SelectMode.SelectRead))
            {
                throw new FaultException(
                    FaultCode.NoProgress,
                    $"Rank {string.Join(", ", missing.Order())} of {_size} did not come to {_host}:{_port} within {_limit.TotalSeconds:0} s. Start every rank "
                    + "with the same TREEATTN_RENDEZVOUS and TREEATTN_WORLD_SIZE, each with a TREEATTN_RANK of its own.");
            }

            using Socket came = listener.Accept();
            if (TrySend(came, message, out int rank))
            {
                missing.Remove(rank);
            }
        }
    }

    private Socket Listen()
    {
        bool isVersion4 = !Socket.OSSupportsIPv6 || (IsLoopback && !_host.Contains(':', StringComparison.Ordinal));
        IPAddress here = isVersion4
            ? IsLoopback ? IPAddress.Loopback : IPAddress.Any
            : IsLoopback ? IPAddress.IPv6Loopback : IPAddress.IPv6Any;
        var listener = new Socket(here.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            if (!isVersion4)
            {
                listener.DualMode = true;
            }

            listener.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.ReuseAddress, true);
            listener.Bind(new IPEndPoint(here, _port));
            listener.Listen(_size);
            return listener;
        }
        catch (SocketException error)
        {
            listener.Dispose();
            throw new FaultException(
                FaultCode.Unavailable, $"Rank 0 cannot listen at port {_port}: {error.Message}. Choose a free port in TREEATTN_RENDEZVOUS.", error);
        }
    }

    // A visitor says its rank and gets the bytes; one that says nothing sensible is left.
    private bool TrySend(Socket socket, byte[] message, out int rank)
    {
        rank = 0;
        try
        {
            socket.ReceiveTimeout = socket.SendTimeout = 5000;
            Span<byte> said = stackalloc byte[sizeof(int)];
            ReceiveAll(socket, said);
            rank = BinaryPrimitives.ReadInt32LittleEndian(said);
            if (rank <= 0 || rank >= _size)
            {
                return false;
            }

            for (int sent = 0; sent < message.Length;)
            {
                sent += socket.Send(message.AsSpan(sent), SocketFlags.None);
            }

            return true;
        }
        catch (SocketException)
        {
            return false;
        }
    }

    private byte[] Take()
    {
        byte[] number = new byte[sizeof(int)];
        for (var clock = Stopwatch.StartNew(); clock.Elapsed < _limit; Thread.Sleep(50))
        {
            using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
            try
            {
                socket.ReceiveTimeout = (int)_limit.TotalMilliseconds;
                socket.Connect(_host, _port);
                BinaryPrimitives.WriteInt32LittleEndian(number, _rank);
                socket.Send(number, SocketFlags.None);
                ReceiveAll(socket, number);
                int bytes = BinaryPrimitives.ReadInt32LittleEndian(number);
                if (bytes is >= 0 and <= MostBytes)
                {
                    byte[] message = new byte[bytes];
                    ReceiveAll(socket, message);
                    return message;
                }
            }
            catch (SocketException)
            {
                // Rank 0 is not there yet.
            }
        }

        throw new FaultException(
            FaultCode.NoProgress,
            $"Rank {_rank} of {_size} did not find rank 0 at {_host}:{_port} within {_limit.TotalSeconds:0} s. Start rank 0 on that host, and look for a firewall.");
    }

    private static void ReceiveAll(Socket socket, Span<byte> into)
    {
        while (into.Length > 0)
        {
            int bytes = socket.Receive(into, SocketFlags.None);
            into = bytes > 0 ? into[bytes..] : throw new SocketException((int)SocketError.ConnectionReset);
        }
    }
}
