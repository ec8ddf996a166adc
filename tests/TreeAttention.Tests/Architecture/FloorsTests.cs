using System;
using System.Collections.Generic;
using System.Linq;
using Xunit;

namespace TreeAttention.Tests.Architecture;

/// <summary>The rooms of src lie on floors: a room uses rooms of floors below its own, and never a sibling on its floor.</summary>
public sealed class FloorsTests
{
    // From the ground up. A room that is not listed fails; so does an edge upwards or along a floor.
    private static readonly string[][] _floors =
    [
        ["Interop", "Distributed/Faults"],
        ["Interop/Posix", "Distributed/Numerics"],
        ["Interop/Cuda", "Interop/Mpi", "Interop/Nccl", "Distributed/Semantics"],
        ["Distributed/Layout"],
        ["Distributed/Partials"],
        ["Distributed/Ports"],
        ["Distributed/Loading", "Distributed/Reductions"],
        ["Distributed/Steps"],
        ["Distributed/Cache"],
        ["Distributed/Prefill"],
        ["Verification", "Communication/Control", "Communication/Nodes", "Devices", "Devices/Cpu/Vectors", "Devices/Cpu/Memory", "Devices/Cuda/Driver"],
        ["Communication/Transports"],
        ["Communication/InProcess", "Communication/Mpi", "Communication/Nccl", "Communication/Staging", "Devices/Cpu/Kernels", "Devices/Cuda/Kernels"],
        ["Devices/Cpu/Scheduling", "Devices/Cuda/Attention"],
        ["Devices/Cpu", "Devices/Cuda"],
        ["Runtime/Files"],
        ["Runtime/Groups"],
        ["Runtime/Caches", "Runtime/Inspection", "Runtime/Measurement"],
        ["Cli/Arguments"],
        ["Cli/Output"],
        ["Cli/Attend", "Cli/Bench", "Cli/Decode", "Cli/Doctor", "Cli/Verify"],
        ["Cli"],
    ];

    private static readonly Dictionary<string, int> _floorOf =
        _floors.SelectMany((rooms, floor) => rooms.Select(room => (room, floor))).ToDictionary(entry => entry.room, entry => entry.floor);

    [Fact]
    public void Every_room_has_a_floor_and_every_floor_only_rooms_that_are_there()
    {
        Assert.Equal(_floorOf.Keys.Order(StringComparer.Ordinal), CodeMap.Current.Rooms);
    }

    [Fact]
    public void A_room_uses_only_rooms_below_it()
    {
        string[] wrong = Wrong(CodeMap.Current.RoomEdges);

        Assert.True(wrong.Length == 0, $"These edges lead up or along a floor:\n{string.Join('\n', wrong)}");
    }

    [Fact]
    public void An_edge_upwards_and_an_edge_between_siblings_are_noticed()
    {
        CodeEdge up = new("Distributed/Steps", "Distributed/Cache", "a", "b");
        CodeEdge along = new("Communication/Nccl", "Communication/Mpi", "c", "d");
        CodeEdge down = new("Cli", "Distributed/Faults", "e", "f");

        Assert.Equal([up.ToString(), along.ToString()], Wrong([up, along, down]));
    }

    [Fact]
    public void The_map_sees_uses_that_are_certainly_there()
    {
        Assert.Contains(CodeMap.Current.RoomEdges, edge => edge is { From: "Distributed/Steps", To: "Distributed/Reductions" });
        Assert.Contains(CodeMap.Current.RoomEdges, edge => edge is { From: "Communication/Mpi", To: "Interop/Mpi" });
        Assert.Contains(CodeMap.Current.RoomEdges, edge => edge is { From: "Cli/Attend", To: "Runtime/Groups" });
    }

    private static string[] Wrong(IReadOnlyList<CodeEdge> edges) =>
        [.. edges.Where(edge => _floorOf.GetValueOrDefault(edge.From, -1) <= _floorOf.GetValueOrDefault(edge.To, int.MaxValue)).Select(edge => edge.ToString())];
}
