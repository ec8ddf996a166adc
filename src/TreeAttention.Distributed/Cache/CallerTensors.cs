using System;

namespace TreeAttention.Distributed;

/// <summary>A caller's tensors in a device's memory, in the order of the caller's stream: taken as fp32 into a step, and filled with its result.</summary>
/// <remarks>Room for the fp32 copies of other types grows when needed; after that nothing is allocated, and the host never waits.</remarks>
internal sealed class CallerTensors(IDevice device) : IDisposable
{
    private readonly Region[] _room = new Region[Enum.GetValues<StepTensor>().Length];

    /// <summary>The device's work from now on comes after what the caller's stream holds.</summary>
    /// <exception cref="ArgumentException">The device has no streams, and this is one.</exception>
    public void Begin(nint stream)
    {
        if (device is IStreamDevice gpu)
        {
            gpu.Follow(stream);
        }
        else if (stream != 0)
        {
            throw new ArgumentException($"The device computes on the {device.Name}, which has no streams: give 0.", nameof(stream));
        }
    }

    /// <summary>What the caller's stream gets from now on comes after the device's work.</summary>
    public void End(nint stream)
    {
        if (device is IStreamDevice gpu)
        {
            gpu.Precede(stream);
        }
    }

    /// <summary>Throws when a result cannot be what the caller wants it to be, before anything is done.</summary>
    /// <exception cref="ShapeMismatchException">Output or lse are of another size or type.</exception>
    public void RequireResult(AttentionShape shape, int queries, DeviceTensor output, DeviceTensor lse)
    {
        AttentionEdge.RequireSizes(shape, queries, output.On(device.Place).Count, lse.On(device.Place).Count);
        if (lse.Type != ElementType.Float32)
        {
            throw new ShapeMismatchException($"The log-sum-exp is f32, not {lse.Type.ShortName()}, which would lose most of it.");
        }
    }

    /// <summary>A tensor's numbers as fp32.</summary>
    public Region Take(StepTensor which, DeviceTensor tensor)
    {
        Region given = tensor.On(device.Place);
        if (given.Type == ElementType.Float32 || given.Count == 0)
        {
            return given;
        }

        Region taken = RoomFor(which, given.Count);
        device.Convert(given, taken);
        return taken;
    }

    /// <summary>Copies a tensor's numbers as fp32.</summary>
    public void CopyTo(Region into, DeviceTensor tensor)
    {
        Region given = tensor.On(device.Place);
        if (given.Type == ElementType.Float32)
        {
            device.Copy(given, into);
        }
        else
        {
            device.Convert(given, into);
        }
    }

    /// <summary>Makes the caller's result of a final state.</summary>
    public void Finish(AttentionProblem problem, int[] indices, PartialAttention state, DeviceTensor output, DeviceTensor lse)
    {
        (Region results, Region sums) = (output.On(device.Place), lse.On(device.Place));
        if (results.Type == ElementType.Float32)
        {
            device.Finish(problem, indices, state, results, sums);
            return;
        }

        Region room = RoomFor(StepTensor.Output, results.Count);
        device.Finish(problem, indices, state, room, sums);
        device.Convert(room, results);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        for (int i = 0; i < _room.Length; i++)
        {
            Free(ref _room[i]);
        }
    }

    private Region RoomFor(StepTensor which, long floats)
    {
        ref Region room = ref _room[(int)which];
        if (room.Count < floats)
        {
            Free(ref room);
            room = device.Allocate(floats * sizeof(float), ElementType.Float32);
        }

        return floats == 0 ? Region.Empty : room.Slice(0, floats);
    }

    private void Free(ref Region room)
    {
        if (room.Bytes > 0)
        {
            device.Free(room);
        }

        room = Region.Empty;
    }
}
