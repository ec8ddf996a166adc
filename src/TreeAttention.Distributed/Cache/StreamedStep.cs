using System;

namespace TreeAttention.Distributed;

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
