using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Cache;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Distributed.Prefill;

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
    private protected override void Close()
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
        using AttentionStep step = StepFactory.Create(
            Context, problem, map, new AttentionPlan(algorithm, ReductionKind.Auto, QueryPlacement.Sharded), Tokens.Count);
        PartialAttention state = step.Run(_queries, new KeyValueShard(_shard.Plan, _shard.Contents, map.LimitsOf(Context.Transport.Rank)));
        Times = step.Times;
        Finish(problem, state, output, lse);
        Cache.Bound.Raise(Enumerable.Range(0, map.Ranks).SelectMany(map.LimitsOf).Aggregate(0f, (largest, page) => MathF.Max(largest, page.LargestValue)));
    }

    private void Finish(AttentionProblem problem, PartialAttention state, Span<float> output, Span<float> lse)
    {
        using HostState? host = Context.Device.Place == MemoryPlace.Device ? new HostState(state.Rows, state.ValueDim) : null;
        AttentionEdge.Finish(problem, _queries.Indices, host?.Take(Context.Device, state) ?? state, output, lse);
    }

    private ShardMap NewMap() => new(
        _prompts.Problem.Shape, _prompts.Shards, Context.Transport.Size, Cache.Options.Type, Cache.Options.ValuesInKeys, Cache.Options.Scales);

    private static Region Send(DeviceInput input, ReadOnlySpan<float> numbers)
    {
        numbers.CopyTo(input.Take(numbers.Length));
        return input.Send(numbers.Length);
    }
}

/// <summary>A rank's share of the prompts' keys and values as a shard that rings and gathers move: rotated, in the storage type, nothing padded.</summary>
/// <remarks>
/// Devices write tokens into pages of a cache, which have room for 512. Whole pages of a shard are like that and are written in
/// place; others are written to a slot beside them, and their heads moved together.
/// </remarks>
internal sealed class PromptShard : IDisposable
{
    private readonly IDevice _device;
    private readonly CacheContents _parts; // a slot for each page that is not whole
    private readonly List<int> _partPages = [];
    private readonly Region _contents;
    private readonly Region _limits; // [pages, kv_heads]
    private readonly HostMemory _none;
    private readonly HostMemory _measured;
    private readonly TokenPlace[] _wholePlaces; // [tokens]
    private readonly TokenPlace[] _partPlaces;  // [tokens]

    /// <summary>Makes room for a share.</summary>
    /// <param name="device">The rank's device.</param>
    /// <param name="plan">The share's pages, of one batch row.</param>
    /// <param name="options">Sizes and types of the cache.</param>
    public PromptShard(IDevice device, ShardPlan plan, CacheOptions options)
    {
        (_device, Plan) = (device, plan);
        int tokens = 0;
        for (int page = 0; page < plan.Pages.Count; page++)
        {
            tokens += plan.Pages[page].Span.Count;
            if (plan.Pages[page].Span.Count < PageSpan.Keys)
            {
                _partPages.Add(page);
            }
        }

        _wholePlaces = new TokenPlace[tokens];
        _partPlaces = new TokenPlace[tokens];
        long limitBytes = (long)plan.Pages.Count * plan.Shape.KvHeads * CacheContents.FloatsOfLimits * sizeof(float);
        _none = new HostMemory(limitBytes, ElementType.Float32);
        _measured = new HostMemory(limitBytes, ElementType.Float32);
        _contents = device.Allocate(plan.Bytes, plan.Type);
        _limits = device.Allocate(limitBytes, ElementType.Float32);
        _parts = new CacheContents(device, options with { Layers = 1 }, _partPages.Count);
        PlaceTokens();
    }

    /// <summary>The share's pages.</summary>
    public ShardPlan Plan { get; }

    /// <summary>What travels.</summary>
    public Region Contents => _contents;

    /// <summary>Writes all tokens of the share.</summary>
    /// <param name="keys">[tokens, kv_heads, head_dim] fp32 in the device's memory, in the order of the plan.</param>
    /// <param name="values">[tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="angles">[tokens] by which keys are rotated; null for none.</param>
    /// <returns>[pages, kv_heads] how large the stored numbers are.</returns>
    public PageLimits[] Fill(Region keys, Region values, RotaryAngles? angles)
    {
        int tokens = _wholePlaces.Length;
        if (tokens == 0)
        {
            return [];
        }

        _device.Copy(_none.Region, _limits);
        if (_partPages.Count < Plan.Pages.Count)
        {
            _device.Append(new TokenBlock(keys, values, _wholePlaces, tokens, angles), new KeyValueShard(Plan, _contents, []) { Growing = _limits });
        }

        if (_partPages.Count > 0)
        {
            _device.Append(new TokenBlock(keys, values, _partPlaces, tokens, angles), _parts[0] with { Growing = _limits });
            MoveParts();
        }

        _device.Copy(_limits, _measured.Region);
        _device.Synchronize();
        return _measured.Region.AsSpan<PageLimits>().ToArray();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _parts.Dispose();
        _device.Free(_limits);
        _device.Free(_contents);
        _measured.Dispose();
        _none.Dispose();
    }

    private void PlaceTokens()
    {
        int token = 0;
        for (int page = 0; page < Plan.Pages.Count; page++)
        {
            KeyPage entry = Plan.Pages[page];
            int slot = _partPages.IndexOf(page);
            for (int i = 0; i < entry.Span.Count; i++, token++)
            {
                _wholePlaces[token] = slot >= 0
                    ? TokenPlace.Elsewhere
                    : new TokenPlace(entry.KeyOffset + ((long)i * Plan.Shape.HeadDim), entry.ValueOffset + ((long)i * Plan.ValueStride), page);
                _partPlaces[token] = slot < 0 ? TokenPlace.Elsewhere : _parts.PlaceOf(slot, i) with { Slot = page };
            }
        }
    }

    private void MoveParts()
    {
        Region parts = _parts[0].Contents;
        for (int slot = 0; slot < _partPages.Count; slot++)
        {
            KeyPage page = Plan.Pages[_partPages[slot]];
            MoveHeads(parts, _parts.KeyOffsetOf(slot), page.KeyOffset, page.Span.Count, Plan.Shape.HeadDim);
            if (!Plan.ValuesInKeys)
            {
                MoveHeads(parts, _parts.ValueOffsetOf(slot), page.ValueOffset, page.Span.Count, Plan.Shape.ValueDim);
            }
        }
    }

    private void MoveHeads(Region parts, long from, long to, int count, int dim)
    {
        for (int head = 0; head < Plan.Shape.KvHeads; head++)
        {
            _device.Copy(
                parts.Slice(from + ((long)head * PageSpan.Keys * dim), (long)count * dim), _contents.Slice(to + ((long)head * count * dim), (long)count * dim));
        }
    }
}
