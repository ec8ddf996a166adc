using System;
using System.Globalization;
using System.Linq;
using TreeAttention.Distributed.Cache;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;

namespace TreeAttention;

/// <summary>One decode step over a cache: append, attend, reduce, in one call, with the exact result on every rank.</summary>
/// <remarks>
/// The semantics are those of flash-attn's <c>flash_attn_with_kvcache</c>: queries are aligned with the end of each row, new tokens
/// included; keys are rotated at their positions, query i at that of new token i where the mask is causal, a window or chunks, else at
/// that of the first new token. Where queries have depths they are nodes of a token tree, and so are the new tokens: both turn by
/// their depths. Made once for given sizes; steps allocate nothing, except where a reduction's transport does. Where the device has
/// a stream, a step that appends as many tokens as it has queries is enqueued whole (<see cref="StreamedStep"/>).
/// Calls come from one thread, the same on every rank.
/// </remarks>
public sealed class DecodeStep : IDisposable, IGroupStep<LayerCall>, IGroupStep<DeviceLayerCall>, IGroupStep<LookCall>
{
    private readonly ShardedKvCache _cache;
    private readonly RankContext _context;
    private readonly IDevice _device;
    private readonly int[] _rows;
    private readonly CacheView _view;
    private readonly KeyValueShard[] _shards; // [layers]
    private readonly AttentionStep _step;
    private readonly DeviceInput _given;
    private readonly DeviceStepTensors _caller;
    private readonly QueryBlock _queries;
    private readonly RotaryAngles? _angles;
    private readonly int[] _positions;
    private readonly int[] _depths; // [batch, query_len], or none
    private readonly bool _isAligned;
    private readonly DecodeOptions _options;
    private readonly HostState? _result;
    private StreamedStep? _streamed; // made when first needed: its page-locked memory has room for whole steps

    /// <summary>Makes a step. Every rank calls it with the same options.</summary>
    /// <param name="context">The rank, as the cache was made with it.</param>
    /// <param name="cache">The cache; it must outlive the step.</param>
    /// <param name="options">Sizes, meaning, plan.</param>
    /// <exception cref="ShapeMismatchException">The options do not fit the cache or one another.</exception>
    /// <exception cref="FaultException">The plan does not fit a growing cache (2), a part is missing (69), out of memory (71).</exception>
    internal DecodeStep(RankContext context, ShardedKvCache cache, DecodeOptions options)
    {
        (_cache, _context, _device) = (cache, context, context.Device);
        Tenancy = new Tenancy(context.Door, nameof(DecodeStep), Close);
        _rows = options.Rows ?? [.. Enumerable.Range(0, cache.Options.Rows)];
        DecodeRules.Check(cache, options, _rows);
        CacheOptions sizes = cache.Options;
        var shape = new AttentionShape(
            _rows.Length, options.QueryLength, sizes.MaxLength, options.QueryHeads, sizes.KvHeads, sizes.HeadDim, sizes.ValueDim);
        shape.Validate();
        _view = new CacheView(cache, _rows, shape);
        Problem = new AttentionProblem(shape, options.Attention with { KeyLengths = _view.KeyLengths });
        _shards = [.. Enumerable.Range(0, sizes.Layers).Select(layer => cache.Contents[layer] with { Plan = _view.Plan })];
        _angles = sizes.Rotary is { Dim: > 0 } rotary ? new RotaryAngles(rotary) : null;
        _positions = new int[_rows.Length * options.QueryLength];
        int[] depths = options.Attention.QueryDepths ?? [];
        _depths = depths.Length == _positions.Length ? depths : [.. Enumerable.Repeat(depths, _rows.Length).SelectMany(row => row)];
        _isAligned = options.Attention.AreQueriesAligned;
        _options = options;
        var shards = new ShardMap(_view.Plan, cache.Ranks, cache.Bound.Limits, _view.Pack);
        _step = StepFactory.Create(context, Problem, shards, options.Plan, options.QueryLength);
        _given = new DeviceInput(_device);
        cache.PrepareAppend(_positions.Length);
        _caller = new DeviceStepTensors(_device);
        long floats = (long)_rows.Length * options.QueryLength * options.QueryHeads * sizes.HeadDim;
        _queries = new QueryBlock(
            _device.Allocate(floats * sizeof(float), ElementType.Float32), [.. Enumerable.Range(0, options.QueryLength)]);
        if (_device.Place == MemoryPlace.Device)
        {
            int rows = _queries.RowsFor(shape);
            _result = new HostState(rows, sizes.ValueDim);
        }
    }

    /// <summary>Sizes of a step: its batch is the rows', its key length the longest that a row of the cache may have.</summary>
    public AttentionShape Shape => Problem.Shape;

    /// <summary>What a step does: <c>4 queries of each of 8 rows, 32 heads, tree/butterfly; causal</c>.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{Shape.QueryLength} queries of each of {Shape.Batch} rows, {Shape.QueryHeads} heads, {_options.Plan}; {_options.Attention}");

    /// <summary>Sizes and options; its key lengths are those of the last step.</summary>
    internal AttentionProblem Problem { get; }

    /// <summary>The reduction that folds the states, as <see cref="AttentionStep.Reduction"/>.</summary>
    public ReductionKind Reduction => _step.Reduction;

    /// <summary>Where the time of the last step's attention went.</summary>
    public StepTimes Times => _step.Times;

    /// <summary>Appends new tokens to a layer, and attends to all that it then holds.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[batch, tokens, kv_heads, head_dim], not rotated; any number of tokens, also none.</param>
    /// <param name="value">[batch, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len], in the base of the options, sinks included.</param>
    /// <exception cref="ShapeMismatchException">A tensor is of another size.</exception>
    /// <exception cref="FaultException">The cache is full (71), a number must not be used (65): nothing was stored. Or the ranks failed.</exception>
    internal void Run(
        int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output, Span<float> lse)
    {
        RequireCall(layer, query, output.Length, lse.Length);
        var before = new CacheMark(_cache, layer, _rows);
        try
        {
            AppendAndAttend(layer, query, key, value, output, lse);
        }
        catch (Exception error)
        {
            before.Restore(error);
            throw;
        }
    }

    /// <summary>The same over tensors in the device's memory, in the order of a stream of the caller's; on a GPU the host does not wait for the device.</summary>
    /// <remarks>
    /// The work begins when what the stream holds is done, and what the stream gets afterwards begins when the result is there.
    /// Nobody looks at the numbers: what is not finite propagates. Where the ranks' transport moves host memory, their reduction
    /// waits all the same; NCCL's does not. Faults of the device come with the next call that waits.
    /// </remarks>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[batch, tokens, kv_heads, head_dim], not rotated; any number of tokens, also none.</param>
    /// <param name="value">[batch, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len], f32, in the base of the options, sinks included.</param>
    /// <param name="stream">A CUDA stream of the GPU's primary context, 0 for its default stream; 0 on a CPU.</param>
    /// <exception cref="ArgumentException">A CPU is given a stream.</exception>
    /// <exception cref="ShapeMismatchException">A tensor is of another size or type.</exception>
    /// <exception cref="FaultException">The cache is full (71): nothing was stored. Or the ranks failed.</exception>
    internal void Run(int layer, DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output, DeviceTensor lse, nint stream)
    {
        _cache.Rows.RequireLayer(layer);
        RequireQueries(query.Count);
        _caller.RequireResult(Problem.Shape, Problem.Shape.QueryLength, output, lse);
        var before = new CacheMark(_cache, layer, _rows);
        _caller.Begin(stream);
        try
        {
            AppendAndAttend(layer, query, key, value, output, lse);
        }
        catch (Exception error)
        {
            before.Restore(error);
            throw;
        }
        finally
        {
            _caller.End(stream); // also after a fault: what was enqueued may still read the caller's tensors
        }
    }

    /// <summary>Attends to what a layer holds; the last keys are those of the queries' own tokens.</summary>
    /// <inheritdoc cref="Run(int, ReadOnlySpan{float}, ReadOnlySpan{float}, ReadOnlySpan{float}, Span{float}, Span{float})"/>
    internal void Attend(int layer, ReadOnlySpan<float> query, Span<float> output, Span<float> lse)
    {
        RequireCall(layer, query, output.Length, lse.Length);
        Attend(layer, query, Problem.Shape.QueryLength, output, lse);
    }

    /// <summary>The step's life.</summary>
    internal Tenancy Tenancy { get; }

    /// <inheritdoc/>
    RankContext IGroupStep.Context => _context;

    /// <inheritdoc/>
    long IGroupStep.TokensTaken => _cache.Rows.Taken;

    /// <inheritdoc/>
    void IGroupStep.RequireUsable()
    {
        Tenancy.RequireLiving();
        _cache.RequireUsable();
    }

    /// <inheritdoc/>
    void IGroupStep<LayerCall>.Run(LayerCall call) => Run(call.Layer, call.Query, call.Key, call.Value, call.Output, call.Lse);

    /// <inheritdoc/>
    void IGroupStep<DeviceLayerCall>.Run(DeviceLayerCall call) =>
        Run(call.Layer, call.Query, call.Key, call.Value, call.Output, call.Lse, call.Stream);

    /// <inheritdoc/>
    void IGroupStep<LookCall>.Run(LookCall call) => Attend(call.Layer, call.Query, call.Output, call.Lse);

    /// <summary>Frees what the step holds; when another thread is in a call of its group, as soon as that is over. Any number of times.</summary>
    public void Dispose() => Tenancy.End();

    /// <summary>Frees what the step holds, at once: for whoever made it for itself alone.</summary>
    internal void Close()
    {
        _streamed?.Dispose();
        _step.Dispose();
        _given.Dispose();
        _caller.Dispose();
        _result?.Dispose();
        _device.Free(_queries.Values);
    }

    private void AppendAndAttend(
        int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output, Span<float> lse)
    {
        if (StreamedFor(key.Length) is { } streamed)
        {
            RunWhole(streamed, layer, query, key, value, output, lse);
            return;
        }

        int before = _cache.Rows.LengthOf(layer, _rows[0]);
        _cache.Append(layer, _rows, key, value, key.IsEmpty ? [] : _depths);
        int tokens = _cache.Rows.LengthOf(layer, _rows[0]) - before;
        Attend(layer, query, tokens, output, lse);
    }

    private void AppendAndAttend(int layer, DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output, DeviceTensor lse)
    {
        if (StreamedFor(key.Count) is { } streamed && value.Count == streamed.Input.DeviceValues.Count)
        {
            _caller.Finish(Problem, _queries.Indices, RunOnDevice(streamed, layer, query, key, value), output, lse);
            return;
        }

        Region queries = _caller.Take(StepTensor.Query, query);
        int before = _cache.Rows.LengthOf(layer, _rows[0]);
        _cache.Append(
            layer, _rows, _caller.Take(StepTensor.Key, key), _caller.Take(StepTensor.Value, value), key.Count == 0 ? [] : _depths);
        int tokens = _cache.Rows.LengthOf(layer, _rows[0]) - before;
        _view.Follow(layer);
        _device.ArrangeQueries(Problem.Shape, queries, AnglesBehind(tokens), _queries);
        _caller.Finish(Problem, _queries.Indices, _step.Enqueue(_queries, _shards[layer]), output, lse);
    }

    // Where the device has a stream, and as many tokens come as there are queries.
    private StreamedStep? StreamedFor(long keyFloats) =>
        _device is IStreamDevice device && keyFloats == (long)_positions.Length * _cache.Options.KeyFloats
            ? _streamed ??= new StreamedStep(device, _step, _queries, _view.Plan, _cache.Options)
            : null;

    private void RunWhole(
        StreamedStep streamed, int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output,
        Span<float> lse)
    {
        _cache.Append(layer, _rows, key, value, _depths, streamed.Input);
        query.CopyTo(streamed.Input.Queries);
        Follow(layer, streamed.Input);
        AttentionEdge.Finish(Problem, _queries.Indices, streamed.Run(layer, _shards[layer]), output, lse);
    }

    private PartialAttention RunOnDevice(StreamedStep streamed, int layer, DeviceTensor query, DeviceTensor key, DeviceTensor value)
    {
        IStepInput input = streamed.Input;
        _caller.CopyTo(input.DeviceQueries, query);
        _caller.CopyTo(input.DeviceKeys, key);
        _caller.CopyTo(input.DeviceValues, value);
        _cache.Append(layer, _rows, input.DeviceKeys, input.DeviceValues, _depths, input);
        Follow(layer, input);
        return streamed.RunOnDevice(layer, _shards[layer]);
    }

    private void Follow(int layer, IStepInput input)
    {
        _view.Follow(layer);
        if (AnglesBehind(Problem.Shape.QueryLength) is { } angles)
        {
            input.Turn(angles);
        }
    }

    private void Attend(int layer, ReadOnlySpan<float> query, int tokens, Span<float> output, Span<float> lse)
    {
        _view.Follow(layer);
        query.CopyTo(_given.Take(query.Length));
        _device.ArrangeQueries(Problem.Shape, _given.Send(query.Length), AnglesBehind(tokens), _queries);
        PartialAttention state = _step.Run(_queries, _shards[layer]);
        AttentionEdge.Finish(Problem, _queries.Indices, _result?.Take(_device, state) ?? state, output, lse);
    }

    private RotaryAngles? AnglesBehind(int tokens)
    {
        if (_angles is null)
        {
            return null;
        }

        int queries = Problem.Shape.QueryLength;
        for (int i = 0; i < _positions.Length; i++)
        {
            (int batch, int query) = Math.DivRem(i, queries);
            int first = _cache.TurnOf(_rows[batch], _view.KeyLengths[batch] - tokens);
            _positions[i] = first + (_depths.Length > 0 ? _depths[i] : _isAligned ? query : 0);
        }

        _angles.Take(_positions);
        return _angles;
    }

    private void RequireQueries(long count)
    {
        if (count != _queries.Values.Count)
        {
            throw new ShapeMismatchException(
                $"A step of {Problem.Shape.Batch} rows × {Problem.Shape.QueryLength} queries × {Problem.Shape.QueryHeads} heads × "
                + $"{Problem.Shape.HeadDim} was given {count} query elements.", "query");
        }
    }

    // All that can be refused without looking at the keys: nothing was changed yet.
    private void RequireCall(int layer, ReadOnlySpan<float> query, int output, int lse)
    {
        _cache.Rows.RequireLayer(layer);
        RequireQueries(query);
        AttentionEdge.RequireSizes(Problem.Shape, Problem.Shape.QueryLength, output, lse);
    }

    private void RequireQueries(ReadOnlySpan<float> query)
    {
        RequireQueries(query.Length);
        int floats = Problem.Shape.QueryHeads * Problem.Shape.HeadDim;
        for (int batch = 0; batch < _rows.Length; batch++)
        {
            // Queries past a row's end are absent: nobody looks at them.
            ReadOnlySpan<float> present = query.Slice(batch * Problem.Shape.QueryLength * floats, Problem.Mask.QueryLength(batch) * floats);
            int refused = StorageCheck.FirstRefused(present, _cache.Options.NonFinite);
            if (refused >= 0)
            {
                (int row, int dim) = Math.DivRem(refused, Problem.Shape.HeadDim);
                (int index, int head) = Math.DivRem(row, Problem.Shape.QueryHeads);
                throw StorageRange.FaultOf("query", batch, index, head, dim, present[refused], ElementType.Float32, NonFinitePolicy.Error)!;
            }
        }
    }
}
