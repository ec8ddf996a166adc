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
using TreeAttention.Distributed.Faults;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Communication.Control;

/// <summary>How the ranks connect to rank 0: it tells address and token on a way that they share already, they present the token.</summary>
internal static unsafe class ControlRendezvous
{
    private const int TokenBytes = 16;
    private const int MostPlaceBytes = 300;
    private const int MostHelloBytes = TokenBytes + sizeof(int) + MostPlaceBytes;
    private static readonly TimeSpan _refusedLimit = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan _helloLimit = TimeSpan.FromSeconds(5);

    internal static string OwnPlace => $"{Environment.MachineName}, pid {Environment.ProcessId}";

    /// <summary>Connects this rank: on rank 0 a link to every other rank, elsewhere one to rank 0.</summary>
    /// <exception cref="FaultException">Not all came in time (201).</exception>
    internal static ControlLink[] Connect(int rank, int size, bool onOneNode, Func<byte[], byte[]> broadcast, TimeSpan limit, Traffic traffic)
    {
        if (rank != 0)
        {
            string[] lines = Encoding.UTF8.GetString(broadcast([])).Split('\n');
            var toRankZero = new ControlLink[1];
            toRankZero[0] = Join(rank, lines, limit, traffic);
            return toRankZero;
        }

        byte[] token = RandomBytes(TokenBytes);
        using Socket listener = Listen(onOneNode, size);
        int port = ((IPEndPoint)listener.LocalEndPoint!).Port;
        IEnumerable<string> addresses = onOneNode ? [IPAddress.Loopback.ToString()] : OwnAddresses();
        string[] invitation = [Convert.ToHexString(token), OwnPlace, port.ToString(CultureInfo.InvariantCulture), .. addresses];
        broadcast(Encoding.UTF8.GetBytes(string.Join('\n', invitation)));
        return Accept(listener, size, token, limit, traffic);
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
    private static ControlLink[] Accept(Socket listener, int size, byte[] token, TimeSpan limit, Traffic traffic)
    {
        var links = new ControlLink?[size];
        var clock = Stopwatch.StartNew();
        while (links.Count(link => link != null) < size - 1)
        {
            TimeSpan left = limit - clock.Elapsed;
            if (left <= TimeSpan.Zero || !listener.Poll(left, SelectMode.SelectRead))
            {
                foreach (ControlLink? link in links)
                {
                    link?.Dispose();
                }

                IEnumerable<int> missing = Enumerable.Range(1, size - 1).Where(rank => links[rank] == null);
                throw new FaultException(
                    FaultCode.NoProgress,
                    $"Rank {string.Join(", ", missing)} of {size} did not connect to rank 0 ({OwnPlace}) within {limit.TotalSeconds:0} s. "
                    + $"The nodes must reach each other by TCP; look for a firewall, or give slow ones a longer {Setting.JoinTimeout}.");
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

    private static ControlLink Join(int rank, string[] invitation, TimeSpan limit, Traffic traffic)
    {
        byte[] token = Convert.FromHexString(invitation[0]);
        int port = int.Parse(invitation[2], CultureInfo.InvariantCulture);
        var clock = Stopwatch.StartNew();
        TimeSpan? refusedSince = null;
        while (clock.Elapsed < limit)
        {
            int refused = 0;
            foreach (string address in invitation[3..])
            {
                (Socket? socket, bool isRefused) = TryConnect(IPAddress.Parse(address), port);
                refused += isRefused ? 1 : 0;
                if (socket != null)
                {
                    var link = new ControlLink(socket, 0, invitation[1], traffic);
                    link.Send(ControlFrame.Hello, HelloOf(rank, token));
                    return link;
                }
            }

            // Rank 0 listened before it invited: where nobody listens any more, it is gone.
            refusedSince = refused == invitation.Length - 3 ? refusedSince ?? clock.Elapsed : null;
            if (clock.Elapsed - refusedSince > _refusedLimit)
            {
                throw new FaultException(FaultCode.PeerLost, $"Rank 0 ({invitation[1]}) has ended before rank {rank} could connect to it. Look for its own messages.") { Rank = 0 };
            }
        }

        throw new FaultException(
            FaultCode.NoProgress,
            $"Rank {rank} could not connect to rank 0 ({invitation[1]}) at {string.Join(", ", invitation[3..])}, port {port}, within {limit.TotalSeconds:0} s. "
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

    private static (Socket? Socket, bool IsRefused) TryConnect(IPAddress address, int port)
    {
        bool isRefused = false;
        var socket = new Socket(address.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            if (socket.ConnectAsync(address, port).Wait(TimeSpan.FromSeconds(2)))
            {
                return (socket, false);
            }
        }
        catch (AggregateException error) when (error.InnerException is SocketException reason)
        {
            // Not this address, or not yet: the caller tries the next one.
            isRefused = reason.SocketErrorCode == SocketError.ConnectionRefused;
            System.Threading.Thread.Sleep(20);
        }

        socket.Dispose();
        return (null, isRefused);
    }
}
