using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Distributed.Cache;

/// <summary>The steps of a cache on a device with a stream: from the host's input to the host's result, each enqueued whole.</summary>
/// <remarks>
/// One copy brings the input, new tokens are stored, queries turned, all keys attended to, the ranks' states folded, and one copy
/// takes the result: for each layer work of its own, which is captured when it is done a second time. A step from host to host ends
/// before the next one's input is written. Tensors that the device has are copied into the input, and nobody waits.
/// </remarks>
internal sealed class StreamedStep : IDisposable
{
    private readonly IStreamDevice _device;
    private readonly AttentionStep _step;
    private readonly QueryBlock _queries;
    private readonly StepReplay[] _replays; // [layers] from host to host
    private readonly StepReplay[] _onDevice; // [layers] of tensors that the device has
    private readonly PartialAttention _result; // in page-locked memory

    /// <summary>Makes the steps of all layers.</summary>
    /// <param name="device">The device.</param>
    /// <param name="step">Attends and folds.</param>
    /// <param name="queries">Where it finds the queries.</param>
    /// <param name="plan">The plan of the rows that the step sees.</param>
    /// <param name="cache">The cache that the tokens go into.</param>
    public StreamedStep(IStreamDevice device, AttentionStep step, QueryBlock queries, ShardPlan plan, CacheOptions cache)
    {
        (_device, _step, _queries) = (device, step, queries);
        AttentionShape shape = plan.Shape;
        Input = device.CreateStepInput(shape, shape.Batch * shape.QueryLength, plan, cache.Rotary is { Dim: > 0 } rotary ? rotary : null);
        int rows = queries.RowsFor(shape);
        Region result = device.AllocatePinned(PartialAttention.FloatsFor(rows, shape.ValueDim) * sizeof(float), ElementType.Float32);
        _result = new PartialAttention(result, rows, shape.ValueDim);
        _replays = new StepReplay[cache.Layers];
        _onDevice = new StepReplay[cache.Layers];
        for (int layer = 0; layer < cache.Layers; layer++)
        {
            _replays[layer] = new StepReplay(device, step, EnqueueWhole);
            _onDevice[layer] = new StepReplay(device, step, Enqueue);
        }
    }

    /// <summary>What the next step takes from the host.</summary>
    public IStepInput Input { get; }

    /// <summary>Does a step with what was written, and waits for its end.</summary>
    /// <returns>The state of the queries, in host memory; valid until the next step.</returns>
    public PartialAttention Run(int layer, KeyValueShard shard)
    {
        PartialAttention result = _replays[layer].Run(_queries, shard);
        _step.AwaitEnd();
        return result;
    }

    /// <summary>Enqueues a step over what the input's memory of the device has, with the places and angles that were written.</summary>
    /// <returns>The state of the queries, in the device's memory.</returns>
    public PartialAttention RunOnDevice(int layer, KeyValueShard shard)
    {
        Input.UploadPlaces();
        return _onDevice[layer].Run(_queries, shard);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        for (int layer = 0; layer < _replays.Length; layer++)
        {
            _replays[layer].Dispose();
            _onDevice[layer].Dispose();
        }

        Input.Dispose();
        _device.FreePinned(_result.Region);
    }

    private PartialAttention EnqueueWhole(QueryBlock queries, KeyValueShard shard)
    {
        Input.Upload();
        PartialAttention state = Enqueue(queries, shard);
        _device.Copy(state.Region, _result.Region);
        return _result;
    }

    private PartialAttention Enqueue(QueryBlock queries, KeyValueShard shard)
    {
        Input.Append(shard);
        Input.Arrange(queries);
        return _step.RunDirectly(queries, shard);
    }
}

/// <summary>A caller's tensors in a device's memory, in the order of the caller's stream: taken as fp32 into a step, and filled with its result.</summary>
/// <remarks>Room for the fp32 copies of other types grows when needed; after that nothing is allocated, and the host never waits.</remarks>
internal sealed class DeviceStepTensors(IDevice device) : IDisposable
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

/// <summary>Numbers of the host on their way to a device: written where the host can, read where the device can; room grows when needed.</summary>
internal sealed class DeviceInput(IDevice device) : IDisposable
{
    private Region _region;
    private HostMemory? _staging;

    /// <summary>Room for so many floats that the host writes.</summary>
    public Span<float> Take(long floats)
    {
        if (_region.Count < floats)
        {
            Dispose();
            _region = device.Allocate(floats * sizeof(float), ElementType.Float32);
            _staging = device.Place == MemoryPlace.Device ? new HostMemory(floats * sizeof(float), ElementType.Float32) : null;
        }

        return (_staging?.Region ?? _region).Slice(0, floats).AsSpan<float>();
    }

    /// <summary>What was written, in the device's memory.</summary>
    public Region Send(long floats)
    {
        Region region = _region.Count == 0 ? Region.Empty : _region.Slice(0, floats);
        if (_staging is not null)
        {
            device.Copy(_staging.Region.Slice(0, floats), region);
        }

        return region;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_region.Count > 0)
        {
            device.Free(_region);
        }

        _staging?.Dispose();
        (_region, _staging) = (Region.Empty, null);
    }
}
