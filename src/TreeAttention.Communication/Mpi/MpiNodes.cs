using System;
using System.Collections.Generic;
using System.Linq;
using System.Numerics;
using System.Runtime.InteropServices;
using System.Text;
using TreeAttention.Communication.Nodes;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Mpi;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Communication.Mpi;

/// <summary>Which ranks share a machine, and whether some machine has fewer cores than ranks.</summary>
internal sealed unsafe class MpiNodes
{
    // One record a rank: host name, then four integers, then the set of cores that the rank may use.
    private const int HostBytes = 256;
    private const int Integers = 4;
    private const int MaskBytes = 1024;
    private const int RecordBytes = HostBytes + (Integers * sizeof(int)) + MaskBytes;

    private MpiNodes(int[] nodeOfRank, string[] hosts, bool oversubscribed)
    {
        NodeOfRank = nodeOfRank;
        Hosts = hosts;
        IsOversubscribed = oversubscribed;
    }

    /// <summary>Per rank the index of its node, in order of first appearance.</summary>
    internal IReadOnlyList<int> NodeOfRank { get; }

    /// <summary>Per rank its host name.</summary>
    internal IReadOnlyList<string> Hosts { get; }

    /// <summary>Some node has more ranks than cores for them.</summary>
    internal bool IsOversubscribed { get; }

    /// <summary>Asks every rank of the world. Collective.</summary>
    internal static MpiNodes Gather(MpiChannel world)
    {
        (int leader, int sharing) = AskLibrary(world);
        byte[] records = new byte[RecordBytes * world.Size];
        Span<byte> mine = records.AsSpan(world.Rank * RecordBytes, RecordBytes);
        byte[] host = Encoding.UTF8.GetBytes(Environment.MachineName);
        host.AsSpan(0, Math.Min(host.Length, HostBytes - 1)).CopyTo(mine);
        ulong* mask = stackalloc ulong[MaskBytes / sizeof(ulong)];
        new Span<byte>(mask, MaskBytes).Clear();
        int usable = LibC.GetAffinity(0, MaskBytes, mask) < 0 ? 0 : CountBits(new ReadOnlySpan<ulong>(mask, MaskBytes / sizeof(ulong)));
        new ReadOnlySpan<byte>(mask, MaskBytes).CopyTo(mine[(RecordBytes - MaskBytes)..]);
        ReadOnlySpan<int> numbers = [leader, sharing, Environment.ProcessorCount, usable];
        MemoryMarshal.AsBytes(numbers).CopyTo(mine[HostBytes..]);
        fixed (byte* all = records)
        {
            world.AllGather((nint)(all + (world.Rank * RecordBytes)), RecordBytes, (nint)all);
        }

        return Judge([.. Enumerable.Range(0, world.Size).Select(rank => Report.Read(records.AsSpan(rank * RecordBytes, RecordBytes)))]);
    }

    /// <summary>Decides from what each rank reported.</summary>
    /// <remarks>
    /// A library may say that every rank is alone (MPICH 5.0 does) though host names agree; then host names decide. Two
    /// machines of one name, which the library tells apart, stay apart as long as it finds any two ranks together.
    /// </remarks>
    internal static MpiNodes Judge(IReadOnlyList<Report> reports)
    {
        bool libraryKnows = reports.Any(report => report.Sharing > 1);
        int[] nodes = libraryKnows ? NodeNumbers.Of(reports.Select(report => report.Leader)) : NodeNumbers.Of(reports.Select(report => report.Host));
        bool oversubscribed = reports.Zip(nodes).GroupBy(pair => pair.Second, pair => pair.First)
            .Any(node => node.Count() > CoresFor([.. node]));
        return new MpiNodes(nodes, [.. reports.Select(report => report.Host)], oversubscribed);
    }

    // The ranks of a node may be bound to different cores: together they have the union. A quota of the container shows as
    // a processor count below the bound cores, and holds for all ranks together.
    private static int CoresFor(IReadOnlyList<Report> node)
    {
        ulong[] union = new ulong[MaskBytes / sizeof(ulong)];
        foreach (Report report in node)
        {
            for (int i = 0; i < union.Length; i++)
            {
                union[i] |= report.Mask[i];
            }
        }

        int quota = node.Min(report => report.Processors < report.Usable || report.Usable == 0 ? report.Processors : int.MaxValue);
        int bound = CountBits(union);
        return bound == 0 ? quota : Math.Min(bound, quota);
    }

    private static int CountBits(ReadOnlySpan<ulong> mask)
    {
        int bits = 0;
        foreach (ulong word in mask)
        {
            bits += BitOperations.PopCount(word);
        }

        return bits;
    }

    // The leader is the world rank of the first rank of the node.
    private static (int Leader, int Sharing) AskLibrary(MpiChannel world)
    {
        MpiConstants mpi = world.Library.Constants;
        nint communicator = 0;
        int error = MpiNative.CommSplitType(world.Communicator, mpi.CommTypeShared, world.Rank, mpi.InfoNull, &communicator);
        world.Check(error, "finding the ranks of this machine");
        var node = new MpiChannel(world.Library, communicator, world.IsPolite, world.PieceBytes);
        int leader = world.Rank;
        node.Broadcast((nint)(&leader), sizeof(int), root: 0);
        world.Check(MpiNative.CommFree(&communicator), "finding the ranks of this machine");
        return (leader, node.Size);
    }

    /// <summary>What one rank says of its place.</summary>
    /// <param name="Host">Host name.</param>
    /// <param name="Leader">World rank of the first rank on its machine, in the library's eyes.</param>
    /// <param name="Sharing">Ranks on its machine, in the library's eyes.</param>
    /// <param name="Processors">Processors that .NET counts: affinity and quota.</param>
    /// <param name="Usable">Processors in <paramref name="Mask"/>; 0 when unknown.</param>
    /// <param name="Mask">The processors that it may run on.</param>
    internal sealed record Report(string Host, int Leader, int Sharing, int Processors, int Usable, ulong[] Mask)
    {
        internal static Report Read(ReadOnlySpan<byte> record)
        {
            ReadOnlySpan<byte> host = record[..HostBytes];
            ReadOnlySpan<int> numbers = MemoryMarshal.Cast<byte, int>(record[HostBytes..(RecordBytes - MaskBytes)]);
            return new Report(
                Encoding.UTF8.GetString(host[..host.IndexOf((byte)0)]),
                numbers[0], numbers[1], numbers[2], numbers[3],
                MemoryMarshal.Cast<byte, ulong>(record[(RecordBytes - MaskBytes)..]).ToArray());
        }
    }
}

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
