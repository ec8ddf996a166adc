using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.Linq;
using System.Net;
using System.Net.NetworkInformation;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Threading;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Communication.Control;

/// <summary>How the ranks connect to rank 0: it tells address and token on a way that they share already, they present the token.</summary>
internal static unsafe class ControlRendezvous
{
    private const int TokenBytes = 16;
    private const int MostPlaceBytes = 300;
    private const int MostHelloBytes = TokenBytes + sizeof(int) + MostPlaceBytes;
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(60);
    private static readonly TimeSpan _helloLimit = TimeSpan.FromSeconds(5);

    internal static string OwnPlace => $"{Environment.MachineName}, pid {Environment.ProcessId}";

    /// <summary>Connects this rank: on rank 0 a link to every other rank, elsewhere one to rank 0.</summary>
    /// <exception cref="FaultException">Not all came in time (201).</exception>
    internal static ControlLink[] Connect(int rank, int size, bool onOneNode, Func<byte[], byte[]> broadcast, Traffic traffic)
    {
        if (rank != 0)
        {
            string[] lines = Encoding.UTF8.GetString(broadcast([])).Split('\n');
            var toRankZero = new ControlLink[1];
            toRankZero[0] = Join(rank, lines, traffic);
            return toRankZero;
        }

        byte[] token = RandomBytes(TokenBytes);
        using Socket listener = Listen(onOneNode, size);
        int port = ((IPEndPoint)listener.LocalEndPoint!).Port;
        IEnumerable<string> addresses = onOneNode ? [IPAddress.Loopback.ToString()] : OwnAddresses();
        string[] invitation = [Convert.ToHexString(token), OwnPlace, port.ToString(CultureInfo.InvariantCulture), .. addresses];
        broadcast(Encoding.UTF8.GetBytes(string.Join('\n', invitation)));
        return Accept(listener, size, token, traffic);
    }

    // From the system: .NET's own would want OpenSSL.
    private static byte[] RandomBytes(int count)
    {
        byte[] bytes = new byte[count];
        fixed (byte* address = bytes)
        {
            return LibC.GetEntropy(address, (nuint)count) == 0
                ? bytes
                : throw new FaultException(FaultCode.Unavailable, "The system gives no random numbers (getentropy failed). Use a newer Linux.");
        }
    }

    private static Socket Listen(bool onOneNode, int size)
    {
        bool dual = !onOneNode && Socket.OSSupportsIPv6;
        var listener = new Socket(dual ? AddressFamily.InterNetworkV6 : AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        if (dual)
        {
            listener.DualMode = true;
        }

        listener.Bind(new IPEndPoint(onOneNode ? IPAddress.Loopback : dual ? IPAddress.IPv6Any : IPAddress.Any, 0));
        listener.Listen(size);
        return listener;
    }

    private static IEnumerable<string> OwnAddresses() =>
        NetworkInterface.GetAllNetworkInterfaces()
            .Where(card => card.OperationalStatus == OperationalStatus.Up && card.NetworkInterfaceType != NetworkInterfaceType.Loopback)
            .SelectMany(card => card.GetIPProperties().UnicastAddresses)
            .Select(unicast => unicast.Address)
            .Where(address => !address.IsIPv6LinkLocal)
            .OrderBy(address => address.AddressFamily)
            .Select(address => address.ToString());

    // Whoever connects without the token is dropped: the port may be seen by others.
    private static ControlLink[] Accept(Socket listener, int size, byte[] token, Traffic traffic)
    {
        var links = new ControlLink?[size];
        var clock = Stopwatch.StartNew();
        while (links.Count(link => link != null) < size - 1)
        {
            TimeSpan left = _limit - clock.Elapsed;
            if (left <= TimeSpan.Zero || !listener.Poll(left, SelectMode.SelectRead))
            {
                foreach (ControlLink? link in links)
                {
                    link?.Dispose();
                }

                IEnumerable<int> missing = Enumerable.Range(1, size - 1).Where(rank => links[rank] == null);
                throw new FaultException(
                    FaultCode.NoProgress,
                    $"Rank {string.Join(", ", missing)} of {size} did not connect to rank 0 ({OwnPlace}) within {_limit.TotalSeconds:0} s. "
                    + "The nodes must reach each other by TCP; look for a firewall.");
            }

            ControlLink? came = Greet(listener.Accept(), token, traffic);
            if (came != null && came.Rank > 0 && came.Rank < size && links[came.Rank] == null)
            {
                links[came.Rank] = came;
            }
            else
            {
                came?.Dispose();
            }
        }

        return [.. links.OfType<ControlLink>()];
    }

    private static ControlLink? Greet(Socket socket, byte[] token, Traffic traffic)
    {
        socket.ReceiveTimeout = (int)_helloLimit.TotalMilliseconds;
        byte[] hello = new byte[ControlLink.HeaderBytes + MostHelloBytes];
        int have = 0;
        try
        {
            // A hello is one frame, and nothing is sent behind it before the first beat.
            while (have < ControlLink.HeaderBytes || have < HelloBytes(hello))
            {
                int bytes = socket.Receive(hello.AsSpan(have, Math.Min(hello.Length, HelloBytes(hello)) - have), SocketFlags.None);
                have += bytes > 0 ? bytes : throw new SocketException((int)SocketError.ConnectionReset);
            }
        }
        catch (SocketException)
        {
            socket.Dispose();
            return null;
        }

        ReadOnlySpan<byte> payload = hello.AsSpan(ControlLink.HeaderBytes, have - ControlLink.HeaderBytes);
        if (hello[4] != (byte)ControlFrame.Hello || payload.Length < TokenBytes + sizeof(int)
            || !CryptographicOperations.FixedTimeEquals(payload[..TokenBytes], token))
        {
            socket.Dispose();
            return null;
        }

        socket.ReceiveTimeout = 0;
        int rank = BinaryPrimitives.ReadInt32LittleEndian(payload[TokenBytes..]);
        return new ControlLink(socket, rank, Encoding.UTF8.GetString(payload[(TokenBytes + sizeof(int))..]), traffic);
    }

    private static int HelloBytes(byte[] hello)
    {
        int bytes = BinaryPrimitives.ReadInt32LittleEndian(hello);
        return bytes is >= 0 and <= MostHelloBytes ? ControlLink.HeaderBytes + bytes : ControlLink.HeaderBytes;
    }

    private static ControlLink Join(int rank, string[] invitation, Traffic traffic)
    {
        byte[] token = Convert.FromHexString(invitation[0]);
        int port = int.Parse(invitation[2], CultureInfo.InvariantCulture);
        var clock = Stopwatch.StartNew();
        do
        {
            foreach (string address in invitation[3..])
            {
                Socket? socket = TryConnect(IPAddress.Parse(address), port);
                if (socket != null)
                {
                    var link = new ControlLink(socket, 0, invitation[1], traffic);
                    link.Send(ControlFrame.Hello, HelloOf(rank, token));
                    return link;
                }
            }
        }
        while (clock.Elapsed < _limit);
        throw new FaultException(
            FaultCode.NoProgress,
            $"Rank {rank} could not connect to rank 0 ({invitation[1]}) at {string.Join(", ", invitation[3..])}, port {port}. "
            + "The nodes must reach each other by TCP; look for a firewall.")
        { Rank = rank };
    }

    private static byte[] HelloOf(int rank, byte[] token)
    {
        byte[] place = Encoding.UTF8.GetBytes(OwnPlace);
        int placeBytes = Math.Min(place.Length, MostPlaceBytes);
        byte[] hello = new byte[TokenBytes + sizeof(int) + placeBytes];
        token.CopyTo(hello, 0);
        BinaryPrimitives.WriteInt32LittleEndian(hello.AsSpan(TokenBytes), rank);
        place.AsSpan(0, placeBytes).CopyTo(hello.AsSpan(TokenBytes + sizeof(int)));
        return hello;
    }

    private static Socket? TryConnect(IPAddress address, int port)
    {
        var socket = new Socket(address.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            if (socket.ConnectAsync(address, port).Wait(TimeSpan.FromSeconds(2)))
            {
                return socket;
            }
        }
        catch (AggregateException error) when (error.InnerException is SocketException)
        {
            // Not this address, or not yet: the caller tries the next one.
            System.Threading.Thread.Sleep(20);
        }

        socket.Dispose();
        return null;
    }
}

/// <summary>Where processes meet that no MPI started: rank 0 listens at an address that all were told, and gives a few bytes to each.</summary>
/// <remarks>It is what <see cref="TcpControlPlane.Connect"/> takes in place of a broadcast by MPI. Whoever reaches the port gets the bytes: use it inside a cluster.</remarks>
internal sealed class TcpRendezvous
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
