using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Runtime.Groups;

/// <summary>What each rank gives to one attention without a cache.</summary>
internal readonly ref struct ShardCall
{
    public required ReadOnlySpan<float> Query { get; init; }

    public required ReadOnlySpan<float> Key { get; init; }

    public required ReadOnlySpan<float> Value { get; init; }
}

/// <summary>One attention over keys that the ranks have in memory: laid out, run by the step of the plan, finished, and freed again.</summary>
/// <param name="group">The ranks.</param>
/// <param name="options">Sizes, meaning, layout, plan; the same on every rank.</param>
internal sealed class OneShotAttention(AttentionGroup group, AttendOptions options) : IGroupStep<ShardCall>
{
    /// <inheritdoc/>
    public RankContext Context => group.Context;

    /// <inheritdoc/>
    public StepTimes Times { get; private set; }

    /// <inheritdoc/>
    public long TokensTaken => 0;

    /// <inheritdoc/>
    public void RequireUsable()
    {
        // It lives as long as its one call.
    }

    /// <summary>[batch, query_len, query_heads, value_dim], after the run.</summary>
    public float[] Output { get; private set; } = [];

    /// <summary>[batch, query_heads, query_len], after the run.</summary>
    public float[] Lse { get; private set; } = [];

    /// <inheritdoc/>
    public unsafe void Run(ShardCall call)
    {
        (int queries, int keys, int values) = (call.Query.Length, call.Key.Length, call.Value.Length);
        long mine = group.Together(() => KeysIn(queries, keys, values));
        SettingsAgreement.AgreeOnCall(Context.Control, nameof(AttentionGroup.Attend), CallSettings.Of(options, call.Query));
        long[] lengths = [.. group.Gather(mine).Select(rank => rank[0])];
        AttentionProblem problem = group.Together(() => new AttentionProblem(ShapeOf(lengths.Sum()), options.Attention));
        ShardLayout layout = group.Together(() => LayoutOf(problem, lengths));
        fixed (float* query = call.Query, key = call.Key, value = call.Value)
        {
            Attend(problem, layout, (int)mine, (nint)query, (nint)key, (nint)value);
        }
    }

    private void Attend(AttentionProblem problem, ShardLayout layout, int keys, nint queryAt, nint keyAt, nint valueAt)
    {
        AttentionShape shape = problem.Shape;
        var query = new TensorView("query", queryAt, ElementType.Float32, [shape.Batch, shape.QueryLength, shape.QueryHeads, shape.HeadDim]);
        var key = new TensorView("key", keyAt, ElementType.Float32, [shape.Batch, keys, shape.KvHeads, shape.HeadDim]);
        TensorView value = options.ValuesInKeys
            ? key.TruncateLastAxis("value", shape.ValueDim)
            : new TensorView("value", valueAt, ElementType.Float32, [shape.Batch, keys, shape.KvHeads, shape.ValueDim]);
        IReadOnlyList<PageSpan> held = layout.PagesOf(group.Rank, group.Size, shape.KeyLength);
        using var call = new ShardedCall(
            group, problem, options.Plan, layout, options.Type, options.ValuesInKeys,
            plan => KeyValueLoader.Load(Context.Device, plan, key, value, options.NonFinite, held),
            indices => QueryLoader.Load(Context.Device, shape, query, indices, options.NonFinite, problem.Present), options.Scales);
        using AttentionStep step = group.Together(() => call.CreateStep(options.Plan));
        PartialAttention state = step.Run(call.Queries, call.Shard);
        Times = step.Times;
        Output = new float[(long)shape.Batch * shape.QueryLength * shape.QueryHeads * shape.ValueDim];
        Lse = new float[(long)shape.Batch * shape.QueryHeads * shape.QueryLength];
        call.Finish(state, Output, Lse);
    }

    // How many keys of each sequence this rank gives.
    private long KeysIn(int queries, int keys, int values)
    {
        long keyFloats = (long)options.Batch * options.KvHeads * options.HeadDim;
        long valueFloats = options.ValuesInKeys ? 0 : (long)options.Batch * options.KvHeads * options.ValueDim;
        long queryFloats = (long)options.Batch * options.QueryLength * options.QueryHeads * options.HeadDim;
        ShapeOf(0);
        if (options.Batch < 1 || queries != queryFloats || keys % keyFloats != 0 || values != keys / keyFloats * valueFloats)
        {
            throw new ShapeMismatchException(
                $"{queries} query, {keys} key and {values} value elements do not fit: {options.Batch} rows have {queryFloats} query elements, and "
                + $"{keyFloats} key and {valueFloats} value elements for each key of a row.");
        }

        return keys / keyFloats;
    }

    private AttentionShape ShapeOf(long keys)
    {
        if (keys > int.MaxValue)
        {
            throw new ShapeMismatchException($"The ranks give {keys} keys together: there may be at most {int.MaxValue}.");
        }

        var shape = new AttentionShape(
            options.Batch, options.QueryLength, (int)keys, options.QueryHeads, options.KvHeads, options.HeadDim, options.ValueDim);
        shape.Validate();
        return options.ValuesInKeys && options.ValueDim > options.HeadDim
            ? throw new ShapeMismatchException($"Values of {options.ValueDim} elements do not lie inside keys of {options.HeadDim}.")
            : shape;
    }

    private ShardLayout LayoutOf(AttentionProblem problem, long[] lengths)
    {
        if (options.Plan.Reduction == ReductionKind.Lanes && group.Size > 1 && problem.Present.HasStarts)
        {
            RequireOwnPages(problem.Options);
        }

        if (options.Layout is null)
        {
            return ShardLayout.Lengths([.. lengths.Select(length => (int)length)]);
        }

        int due = options.Layout.CountOf(group.Rank, group.Size, (int)lengths.Sum());
        return due == lengths[group.Rank]
            ? options.Layout
            : throw new ShapeMismatchException(
                $"Rank {group.Rank} of {group.Size} gives {lengths[group.Rank]} keys of each row, but {options.Layout.Name} deals it {due} of the "
                + $"{lengths.Sum()} that all ranks give.");
    }

    // Pages count from the first key of a row, and no key travels before it is attended to.
    private void RequireOwnPages(AttentionOptions attention)
    {
        if (attention.PackedKeys is not { } bounds)
        {
            throw new ShapeMismatchException(
                $"{Setting.Reproducible} counts pages from each row's first key, so {group.Size} ranks cannot hold rows with {Setting.KeyStarts} alike. "
                + $"Leave the padding out: give the keys from the row's first one on, with {Setting.KeyLengths}.");
        }

        if (options.Layout is not { IsLanes: true } || options.Layout.Name != ShardLayout.LanesOf(bounds).Name)
        {
            throw new ShapeMismatchException(
                $"{Setting.Reproducible} counts pages from each packed sequence's first key. Give the keys of ShardLayout.LanesOf({Setting.PackedKeys}).");
        }
    }
}
