using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Communication.InProcess;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Testing.Cases;

/// <summary>One sequence with its queries, keys, values and options: what its bits may depend on, and nothing else.</summary>
internal sealed class OwnRow
{
    internal required int Queries { get; init; }

    internal required int Keys { get; init; }

    internal required int QueryHeads { get; init; }

    internal required int KvHeads { get; init; }

    internal required int HeadDim { get; init; }

    internal required int ValueDim { get; init; }

    internal required ElementType Type { get; init; }

    /// <summary>Options of each head or of the whole call; and <see cref="TailMask"/>.</summary>
    internal AttentionOptions Options { get; init; } = new();

    /// <summary>[queries, tail] or none.</summary>
    internal bool[]? TailMask { get; init; }

    internal int Tail => TailMask is null ? 0 : TailMask.Length / Math.Max(1, Queries);

    /// <summary>[queries, query_heads, head_dim]</summary>
    internal required float[] Query { get; init; }

    /// <summary>[keys, kv_heads, head_dim]</summary>
    internal required float[] Key { get; init; }

    /// <summary>[keys, kv_heads, value_dim]</summary>
    internal required float[] Value { get; init; }

    /// <summary>The query at an index alone, with the keys up to its own: what a causal row was when the query came.</summary>
    internal OwnRow AsOf(int query) => With(query, 1, Keys - Queries + query + 1);

    /// <summary>Some queries, with the first keys.</summary>
    internal OwnRow With(int first, int queries, int keys) => new()
    {
        Queries = queries,
        Keys = keys,
        QueryHeads = QueryHeads,
        KvHeads = KvHeads,
        HeadDim = HeadDim,
        ValueDim = ValueDim,
        Type = Type,
        Options = Options,
        TailMask = TailMask?[(first * Tail)..((first + queries) * Tail)],
        Query = Query[(first * QueryHeads * HeadDim)..((first + queries) * QueryHeads * HeadDim)],
        Key = Key[..(keys * KvHeads * HeadDim)],
        Value = Value[..(keys * KvHeads * ValueDim)],
    };

    /// <summary>Another row of the same heads, with numbers of any size.</summary>
    internal OwnRow Neighbour(Random random, int queries, int keys) => new()
    {
        Queries = queries,
        Keys = keys,
        QueryHeads = QueryHeads,
        KvHeads = KvHeads,
        HeadDim = HeadDim,
        ValueDim = ValueDim,
        Type = Type,
        Options = Options,
        TailMask = TailMask is null ? null : [.. Enumerable.Range(0, queries * Tail).Select(_ => random.Next(2) == 0)],
        Query = Numbers(random, queries * QueryHeads * HeadDim, 1),
        Key = Numbers(random, keys * KvHeads * HeadDim, Math.Pow(10, random.Next(0, 3))),
        Value = Numbers(random, keys * KvHeads * ValueDim, Math.Pow(10, random.Next(0, 3))),
    };

    /// <summary>Normal numbers; one of many is a hundred times larger where <paramref name="outliers"/> says so.</summary>
    internal static float[] Numbers(Random random, int count, double scale, bool outliers = false)
    {
        float[] numbers = new float[count];
        for (int i = 0; i < count; i++)
        {
            double normal = Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());
            numbers[i] = (float)(normal * scale * (outliers && random.Next(10_000) == 0 ? 100 : 1));
        }

        return numbers;
    }
}

/// <summary>Rows of one call, laid out beside each other in one of the ways that there are; what no row has is rubbish.</summary>
/// <param name="rows">The rows.</param>
/// <param name="random">Rubbish, and how much of it.</param>
internal sealed class RowsOfCall(IReadOnlyList<OwnRow> rows, Random random)
{
    private static readonly float[] _rubbish = [float.NaN, float.PositiveInfinity, float.NegativeInfinity, float.MaxValue, -1e30f, 0, 7e4f];

    private readonly OwnRow _any = rows[0];

    /// <summary>The rows of a batch; rows begin behind left padding where asked for.</summary>
    internal IReadOnlyList<float[]> Batched(bool isPadded, int ranks, Func<IDevice> create)
    {
        int[] starts = [.. rows.Select(_ => isPadded ? random.Next(0, 700) : 0)];
        int[] ends = [.. rows.Zip(starts, (row, start) => start + row.Keys)];
        int queries = rows.Max(row => row.Queries) + random.Next(0, 3);
        int keys = ends.Max() + random.Next(0, 600);
        var shape = new AttentionShape(rows.Count, queries, keys, _any.QueryHeads, _any.KvHeads, _any.HeadDim, _any.ValueDim);
        AttentionOptions options = _any.Options with
        {
            KeyLengths = ends,
            QueryLengths = [.. rows.Select(row => row.Queries)],
            KeyStarts = isPadded ? starts : null,
            TailMask = _any.TailMask is null ? null : [.. rows.SelectMany(row => row.TailMask!.Concat(new bool[(queries - row.Queries) * _any.Tail]))],
            TailMaskLength = _any.Tail,
        };

        return Run(
            shape, options, ranks, create,
            [.. rows.Select((row, n) => n * queries)], [.. starts.Select((start, n) => (n * keys) + start)], rows.Count * queries, rows.Count * keys);
    }

    /// <summary>The rows as packed sequences, with padding behind the last one.</summary>
    internal IReadOnlyList<float[]> Packed(int ranks, Func<IDevice> create)
    {
        int[] queries = [0, .. rows.Select((_, n) => rows.Take(n + 1).Sum(row => row.Queries))];
        int[] keys = [0, .. rows.Select((_, n) => rows.Take(n + 1).Sum(row => row.Keys))];
        (int allQueries, int allKeys) = (queries[^1] + random.Next(0, 5), keys[^1] + random.Next(0, 700));
        var shape = new AttentionShape(1, allQueries, allKeys, _any.QueryHeads, _any.KvHeads, _any.HeadDim, _any.ValueDim);
        AttentionOptions options = _any.Options with
        {
            PackedQueries = queries,
            PackedKeys = keys,
            TailMask = _any.TailMask is null ? null : [.. rows.SelectMany(row => row.TailMask!), .. new bool[(allQueries - queries[^1]) * _any.Tail]],
            TailMaskLength = _any.Tail,
        };
        return Run(shape, options, ranks, create, queries[..^1], keys[..^1], allQueries, allKeys);
    }

    private IReadOnlyList<float[]> Run(
        AttentionShape shape, AttentionOptions options, int ranks, Func<IDevice> create, int[] firstQueries, int[] firstKeys, int allQueries, int allKeys)
    {
        using HostMemory query = Fill(allQueries, _any.QueryHeads * _any.HeadDim, firstQueries, row => row.Query);
        using HostMemory key = Fill(allKeys, _any.KvHeads * _any.HeadDim, firstKeys, row => row.Key);
        using HostMemory value = Fill(allKeys, _any.KvHeads * _any.ValueDim, firstKeys, row => row.Value);
        var problem = new AttentionProblem(shape, options);
        float[] output = new float[allQueries * _any.QueryHeads * _any.ValueDim];
        float[] lse = new float[allQueries * _any.QueryHeads];
        var tensors = new ReproducibleTensors(
            View("query", query, shape.QueryLength, _any.QueryHeads, _any.HeadDim), View("key", key, shape.KeyLength, _any.KvHeads, _any.HeadDim),
            View("value", value, shape.KeyLength, _any.KvHeads, _any.ValueDim), _any.Type);
        using var group = InProcessGroup.Create(ranks);
        group.Run(rank =>
        {
            using IDevice device = create();
            var context = new RankContext(group.Transports[rank], device, group.Controls[rank]);
            tensors.Attend(context, problem, rank == ranks - 1 ? (output, lse) : null);
        });

        int width = _any.QueryHeads * _any.ValueDim;
        return
        [
            .. rows.Select((row, n) => (float[])
            [
                .. output[(firstQueries[n] * width)..((firstQueries[n] + row.Queries) * width)],
                .. Enumerable.Range(0, row.Queries * _any.QueryHeads).Select(i => LseOf(lse, shape, firstQueries[n] + (i / _any.QueryHeads), i % _any.QueryHeads)),
            ]),
        ];

        TensorView View(string name, HostMemory memory, int length, int heads, int dim) =>
            new(name, memory.Region.Address, ElementType.Float32, [shape.Batch, length, heads, dim]);
    }

    // lse is [batch, head, query].
    private static float LseOf(float[] lse, AttentionShape shape, int query, int head) =>
        lse[(((query / shape.QueryLength * shape.QueryHeads) + head) * shape.QueryLength) + (query % shape.QueryLength)];

    private HostMemory Fill(int tokens, int width, int[] firsts, Func<OwnRow, float[]> numbers)
    {
        var memory = new HostMemory((long)tokens * width * sizeof(float), ElementType.Float32);
        Span<float> target = memory.Region.AsSpan<float>();
        foreach (ref float element in target)
        {
            element = _rubbish[random.Next(_rubbish.Length)];
        }

        for (int row = 0; row < rows.Count; row++)
        {
            numbers(rows[row]).CopyTo(target[(firsts[row] * width)..]);
        }

        return memory;
    }
}

/// <summary>The tensors of a call, and one rank's part of attending to them reproducibly, as <c>attend --reproducible</c> does it.</summary>
internal sealed record ReproducibleTensors(TensorView Query, TensorView Key, TensorView Value, ElementType Type)
{
    /// <summary>Loads, attends, and gives the results to a rank that has room for them.</summary>
    internal void Attend(RankContext context, AttentionProblem problem, (float[] Output, float[] Lse)? into)
    {
        (AttentionShape shape, IDevice device, int rank) = (problem.Shape, context.Device, context.Transport.Rank);
        var shards = new ShardMap(shape, ShardLayout.Lanes, context.Transport.Size, Type, false, null, problem.Present, true);
        KeyValueShard shard = KeyValueLoader.Load(device, shards.PlanOf(rank), Key, Value, NonFinitePolicy.Error);
        QueryBlock queries = QueryLoader.Load(
            device, shape, Query, [.. Enumerable.Range(0, shape.QueryLength)], NonFinitePolicy.Error, problem.Present);
        using AttentionStep step = StepFactory.Create(
            context, problem, shards, new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes), shape.QueryLength);
        using var host = new HostState(queries.RowsFor(shape), shape.ValueDim);
        PartialAttention state = host.Take(device, step.Run(queries, shard));
        if (into is { } results)
        {
            AttentionEdge.Finish(problem, queries.Indices, state, results.Output, results.Lse);
        }

        device.Free(shard.Contents);
        device.Free(queries.Values);
    }
}
