using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>Prefill by ring or gather: every rank has its share of the prompts, attends with its own queries, and sends keys and values to their owners.</summary>
/// <remarks>
/// Memory of a rank is in proportion to its share, with gather to the prompts. A layer makes an attention step of its own, because
/// devices keep how large the numbers of a shard are as long as its step.
/// </remarks>
internal sealed class ShardedPrefill : PrefillStep
{
    private readonly PromptLayout _prompts;
    private readonly DeviceInput _query;
    private readonly DeviceInput _key;
    private readonly DeviceInput _value;
    private readonly QueryBlock _queries;
    private readonly RotaryAngles? _angles;
    private readonly int[] _positions;
    private readonly PromptShard _shard;
    private readonly TokenExchange _exchange;

    public ShardedPrefill(RankContext context, ShardedKvCache cache, PrefillOptions options, int[] rows, PromptLayout prompts)
        : base(context, cache, options, rows, [.. prompts.TokensOf(context.Transport.Rank, context.Transport.Size)])
    {
        IDevice device = context.Device;
        (int rank, int ranks) = (context.Transport.Rank, context.Transport.Size);
        _prompts = prompts;
        _query = new DeviceInput(device);
        _key = new DeviceInput(device);
        _value = new DeviceInput(device);
        _angles = cache.Options.Rotary is { Dim: > 0 } rotary ? new RotaryAngles(rotary) : null;
        _positions = new int[Tokens.Count];
        _exchange = new TokenExchange(context, cache, source => prompts.TokensOf(source, ranks));
        _shard = new PromptShard(device, NewMap().PlanOf(rank), cache.Options);
        int[] indices = QueryLayout.IndicesOf(QueryPlacement.Sharded, prompts.Shards, prompts.Problem.Shape, rank, ranks);
        long floats = (long)Tokens.Count * options.QueryHeads * cache.Options.HeadDim;
        _queries = new QueryBlock(device.Allocate(floats * sizeof(float), ElementType.Float32), indices);
    }

    /// <inheritdoc/>
    public override IEnumerable<PromptToken> TokensOf(int rank) => _prompts.TokensOf(rank, Context.Transport.Size);

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        _query.Dispose();
        _key.Dispose();
        _value.Dispose();
        _shard.Dispose();
        _exchange.Dispose();
        Context.Device.Free(_queries.Values);
    }

    private protected override void RunPrompts(
        int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output, Span<float> lse)
    {
        for (int i = 0; i < _positions.Length; i++)
        {
            _positions[i] = Cache.TurnOf(Tokens[i].Row, Tokens[i].Index);
        }

        _angles?.Take(_positions);
        Region keys = Send(_key, key);
        Region values = Send(_value, value);
        Attend(query, keys, values, output, lse);
        _exchange.Store(layer, keys, values);
        Context.Device.Synchronize();
        for (int prompt = 0; prompt < Rows.Length; prompt++)
        {
            Cache.Rows.Advance(layer, Rows[prompt], Options.Lengths[prompt]);
        }
    }

    private void Attend(ReadOnlySpan<float> query, Region keys, Region values, Span<float> output, Span<float> lse)
    {
        AttentionProblem problem = _prompts.Problem;
        Context.Device.ArrangeQueries(problem.Shape with { QueryLength = Tokens.Count }, Send(_query, query), _angles, _queries);
        ShardMap map = NewMap();
        map.ShareLimits(Context.Control, _shard.Fill(keys, values, _angles));
        AttentionAlgorithm algorithm = Options.Method == PrefillMethod.Ring ? AttentionAlgorithm.Ring : AttentionAlgorithm.Gather;
        using var step = AttentionStep.Create(
            Context, problem, map, new AttentionPlan(algorithm, ReductionKind.Auto, QueryPlacement.Sharded), Tokens.Count);
        PartialAttention state = step.Run(_queries, new KeyValueShard(_shard.Plan, _shard.Contents, map.LimitsOf(Context.Transport.Rank)));
        Times = step.Times;
        Finish(problem, state, output, lse);
        Cache.Bound.Raise(Enumerable.Range(0, map.Ranks).SelectMany(map.LimitsOf).Aggregate(0f, (largest, page) => MathF.Max(largest, page.LargestValue)));
    }

    private void Finish(AttentionProblem problem, PartialAttention state, Span<float> output, Span<float> lse)
    {
        if (Context.Device.Place != MemoryPlace.Device)
        {
            AttentionEdge.Finish(problem, _queries.Indices, state, output, lse);
            return;
        }

        using var host = new HostMemory(state.Region.Bytes, ElementType.Float32);
        Context.Device.Copy(state.Region, host.Region);
        Context.Device.Synchronize();
        AttentionEdge.Finish(problem, _queries.Indices, new PartialAttention(host.Region, state.Rows, state.ValueDim), output, lse);
    }

    private ShardMap NewMap() => new(
        _prompts.Problem.Shape, _prompts.Shards, Context.Transport.Size, Cache.Options.Type, Cache.Options.ValuesInKeys, Cache.Options.Scales);

    private static Region Send(DeviceInput input, ReadOnlySpan<float> numbers)
    {
        numbers.CopyTo(input.Take(numbers.Length));
        return input.Send(numbers.Length);
    }
}
