using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Numerics.Tensors;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;
using TreeAttention.Runtime.Groups;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Verify;

/// <summary>
/// The cases of <c>treeattn verify</c>: a pairwise covering array over plans, layouts, types, sizes and options, then each option alone.
/// </summary>
/// <remarks>
/// Every plan meets every layout, and both meet every level of every size and option, as do these each other, so far as they
/// go together: the reproducible plan has its own layout, explicit shard lengths with sharded queries ask for as many queries
/// as keys, there are as many queries as keys on short contexts only, packed sequences lie in one batch row, and two options
/// that say the same thing (<see cref="OptionLevels.GoTogether"/>) are not used at once.
/// </remarks>
internal sealed class VerifyCases
{
    private const int PlanFactor = 0, LayoutFactor = 1, TypeFactor = 2, ValueFactor = 3, GroupFactor = 4, HeadDimFactor = 5, KeyFactor = 6,
        BatchFactor = 7, QueryFactor = 8, KvHeadFactor = 9, FirstOption = 10;

    private const int LanesLayout = 4, LengthsLayout = 5;
    private const int AsManyAsKeys = 0;
    private const int OneBatchRow = 0;
    private const int MostKeysOfSquares = 33;

    private static readonly ElementType[] _types = [.. Distributed.Numerics.StorageType.Stored.Select(type => type.Type)];
    private static readonly int[] _groups = [1, 2, 3, 4, 8, 16];
    private static readonly int[] _headDims = [1, 15, 16, 64, 80, 96, 128, 192, AttentionShape.MaxHeadDim];
    private static readonly int[] _keyLengths = [0, 1, 2, 7, MostKeysOfSquares, 100, 513, 1300]; // 513 and more: several pages
    private static readonly int[] _batches = [1, 3];
    private static readonly int[] _queryLengths = [AsManyAsKeys, 1, 2, 9]; // 9 of a group of 16: enough rows for the prefill kernel

    private readonly int _ranks;
    private readonly int _seed;
    private readonly IReadOnlyList<VerifyPlan> _plans;
    private readonly IReadOnlyList<int[]> _rows;

    public VerifyCases(IReadOnlyList<VerifyPlan> plans, int ranks, int seed)
    {
        (_plans, _ranks, _seed) = (plans, ranks, seed);
        IReadOnlyList<int[]> array = CoveringArray.Pairs(
            [
                plans.Count, LengthsLayout + 1, _types.Length, 4, _groups.Length, _headDims.Length, _keyLengths.Length, _batches.Length,
                _queryLengths.Length, 2, .. OptionLevels.Counts,
            ],
            GoTogether);
        FirstAlone = array.Count;
        _rows = [.. array, .. OptionLevels.Alone.Select(AloneRow)];
    }

    /// <summary>Cases of one pass: the array, then those with one option alone.</summary>
    public int Count => _rows.Count;

    /// <summary>The first case with one option alone.</summary>
    public int FirstAlone { get; }

    /// <summary>A case; beyond <see cref="Count"/> the array is gone through again with other numbers.</summary>
    public VerifyCase At(int index)
    {
        int[] row = _rows[index % _rows.Count];
        int seed = unchecked(_seed + index) & int.MaxValue;
        var random = new Random(seed);
        int headDim = _headDims[row[HeadDimFactor]];
        int valueDim = row[ValueFactor] switch
        {
            0 => headDim,
            1 => (headDim + 1) / 2,
            2 => random.Next(1, 100),
            _ => random.Next(1, headDim + 1),
        };
        int keys = _keyLengths[row[KeyFactor]];
        int queries = row[QueryFactor] == AsManyAsKeys ? keys : _queryLengths[row[QueryFactor]];
        int kvHeads = row[KvHeadFactor] + 1;
        var shape = new AttentionShape(
            _batches[row[BatchFactor]], queries, keys, kvHeads * _groups[row[GroupFactor]], kvHeads, headDim, valueDim);
        AttentionOptions options = OptionLevels.Draw(shape, row[FirstOption..], seed);
        return new VerifyCase(
            seed, new AttentionProblem(shape, options), _types[row[TypeFactor]], row[ValueFactor] == 3, _plans[row[PlanFactor]],
            LayoutOf(row[LayoutFactor], keys, random));
    }

    // A row with open levels can be completed: what an open level would have to be, it can be.
    private bool GoTogether(int[] row)
    {
        (int layout, int queries) = (row[LayoutFactor], row[QueryFactor]);
        VerifyPlan? plan = row[PlanFactor] == CoveringArray.Open ? null : _plans[row[PlanFactor]];
        bool shortContext = row[KeyFactor] == CoveringArray.Open || _keyLengths[row[KeyFactor]] <= MostKeysOfSquares;
        bool sharesLengths = plan is { IsSharded: true } && layout == LengthsLayout;
        var options = new ArraySegment<int>(row, FirstOption, row.Length - FirstOption);
        return OptionLevels.GoTogether(options)
            && (!OptionLevels.NeedOneBatchRow(options) || row[BatchFactor] is CoveringArray.Open or OneBatchRow)
            && (plan is not { IsReproducible: true } || layout is CoveringArray.Open or LanesLayout)
            && (!sharesLengths || queries is CoveringArray.Open or AsManyAsKeys)
            && (shortContext || !(sharesLengths || queries == AsManyAsKeys));
    }

    // An option where it shows: three batch rows, nine queries with keys before and behind them, heads of 96, which make scores large
    // where the scale does. Plans and layouts take turns; so do few query rows of a KV head, and enough for the prefill kernel.
    private int[] AloneRow(int[] options, int turn)
    {
        int[] row = new int[FirstOption + options.Length];
        options.CopyTo(row, FirstOption);
        row[PlanFactor] = turn % _plans.Count;
        row[GroupFactor] = Array.IndexOf(_groups, turn % 2 == 0 ? 1 : 4);
        row[HeadDimFactor] = Array.IndexOf(_headDims, 96);
        row[KeyFactor] = Array.IndexOf(_keyLengths, 100);
        row[BatchFactor] = OptionLevels.NeedOneBatchRow(options) ? OneBatchRow : 1;
        row[QueryFactor] = Array.IndexOf(_queryLengths, 9);
        row[KvHeadFactor] = 1;
        return Enumerable.Range(turn, LengthsLayout + 1)
            .Select(layout => (int[])[.. row[..LayoutFactor], layout % (LengthsLayout + 1), .. row[(LayoutFactor + 1)..]])
            .First(GoTogether);
    }

    private ShardLayout LayoutOf(int level, int keys, Random random) => level switch
    {
        0 => ShardLayout.Contiguous,
        1 => ShardLayout.Zigzag,
        2 => ShardLayout.Striped,
        3 => ShardLayout.Cyclic(random.Next(2, 20)),
        LanesLayout => ShardLayout.Lanes,
        _ => ShardLayout.Lengths(LengthsOf(keys, random)),
    };

    // One rank at least has no keys, where there are two or more.
    private int[] LengthsOf(int keys, Random random)
    {
        int[] lengths = new int[_ranks];
        int empty = _ranks > 1 ? random.Next(_ranks) : -1;
        int last = Enumerable.Range(0, _ranks).Last(rank => rank != empty);
        for (int rank = 0; rank < last; rank++)
        {
            lengths[rank] = rank == empty ? 0 : random.Next(keys + 1);
            keys -= lengths[rank];
        }

        lengths[last] = keys;
        return lengths;
    }
}

/// <summary>One call of <c>treeattn verify</c>, the same on every rank.</summary>
/// <param name="Seed">Of its numbers.</param>
/// <param name="Problem">Sizes and options.</param>
/// <param name="StorageType">Of keys and values.</param>
/// <param name="ValuesInKeys">Values are the first elements of the keys.</param>
/// <param name="Plan">How it is computed.</param>
/// <param name="Layout">Which keys each rank has.</param>
internal sealed record VerifyCase(
    int Seed, AttentionProblem Problem, ElementType StorageType, bool ValuesInKeys, VerifyPlan Plan, ShardLayout Layout)
{
    /// <summary>Scales of storage that has some, another for each KV head; null where the type has none.</summary>
    public KeyValueScales? Scales { get; } = ScalesFor(Problem.Shape.KvHeads, StorageType);

    /// <summary>What a failure is reported with.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"seed {Seed}, {Plan.Name} over {Layout}, {StorageType.ShortName()}, {Problem.Shape}{(ValuesInKeys ? ", values in keys" : "")}, {Options}");

    private string Options => string.Join(
        ' ', AttentionOption.All.Where(option => option.IsUsedBy(Problem.Options)).SelectMany(option => option.Settings(Problem.Options))
            .Select(setting => $"{setting.Key} {setting.Value}"));

    /// <summary>The call's numbers, whole on every rank. All are such that storing them loses nothing: what errs is the computation alone.</summary>
    public SyntheticTensors CreateTensors()
    {
        var tensors = new SyntheticTensors(Problem.Shape, Seed);
        for (int position = 0; position < Problem.Shape.KeyLength; position++)
        {
            tensors.FillKey(position);
        }

        Round(tensors.Query, null);
        Round(tensors.Key, Scales?.Key);
        Round(tensors.Value, Scales?.Value);
        return tensors;
    }

    /// <summary>The values of the call.</summary>
    public TensorView ValuesOf(SyntheticTensors tensors) =>
        ValuesInKeys ? tensors.Key.TruncateLastAxis("value", Problem.Shape.ValueDim) : tensors.Value;

    // Three halves of a power of two: products with stored elements are exact in single precision, and the smallest scale has
    // room for ±2.6 of f8e4m3 and ±2.9 of i8, where the numbers lie within ±√3.
    private static KeyValueScales? ScalesFor(int kvHeads, ElementType type)
    {
        int room = type == ElementType.Int8 ? 2 : 0;
        float[] key = [.. Enumerable.Range(0, kvHeads).Select(head => 1.5f * MathF.ScaleB(1, room - 6 - (head % 3)))];
        float[] value = [.. Enumerable.Range(0, kvHeads).Select(head => 1.5f * MathF.ScaleB(1, room - 4 - (head % 2)))];
        return type.Entry().HasScales ? new KeyValueScales(key, value) : null;
    }

    // Queries are computed with as f16 where storage has eight bits.
    private void Round(TensorView tensor, float[]? scales)
    {
        if (StorageType == ElementType.Float32)
        {
            return;
        }

        ElementType type = scales is null ? StorageType.Entry().Arithmetic : StorageType;
        Span<float> numbers = new Region(tensor.Address, tensor.Count * sizeof(float), tensor.Type, MemoryPlace.Host).AsSpan<float>();
        byte[] stored = new byte[type.BytesFor(numbers.Length)];
        if (scales is null)
        {
            ElementConversion.FromFloat(numbers, type, stored);
            ElementConversion.ToFloat(stored, type, numbers);
            return;
        }

        int dim = (int)tensor.Shape[3];
        for (int first = 0; first < numbers.Length; first += dim)
        {
            float scale = scales[first / dim % scales.Length];
            Span<float> row = numbers.Slice(first, dim);
            type.Entry().Store(row, scale, stored.AsSpan(first, dim));
            ElementConversion.ToFloat(stored.AsSpan(first, dim), type, row);
            TensorPrimitives.Multiply(row, scale, row);
        }
    }
}

/// <summary>One case laid out over the group and ready to run. Every rank calls the same members in the same order.</summary>
internal sealed class CaseRun : IDisposable
{
    private readonly AttentionGroup _group;
    private readonly VerifyCase _case;
    private readonly SyntheticTensors _tensors;
    private readonly ShardedCall _call;
    private readonly AttentionStep _step;
    private PartialAttention? _state;

    public CaseRun(AttentionGroup group, VerifyCase verifyCase)
    {
        _group = group;
        _case = verifyCase;
        _tensors = verifyCase.CreateTensors();
        _call = new ShardedCall(
            group, verifyCase.Problem, verifyCase.Plan.Plan, verifyCase.Layout, verifyCase.StorageType, verifyCase.ValuesInKeys, LoadShard, LoadQueries, verifyCase.Scales);
        _step = group.Together(() => _call.CreateStep(verifyCase.Plan.Plan));
    }

    private IDevice Device => _group.Context.Device;

    /// <summary>Runs the step.</summary>
    /// <returns>A digest of the state's bits on each rank.</returns>
    public long[] Run()
    {
        _state = _step.Run(_call.Queries, _call.Shard);
        return [.. _group.Gather(DigestOf(_state)).Select(rank => rank[0])];
    }

    /// <summary>A digest of what this rank gets alone, with all lanes, in the lanes layout.</summary>
    public long DigestAlone() => _group.Together(() =>
    {
        AttentionShape shape = _case.Problem.Shape;
        var shards = new ShardMap(shape, ShardLayout.Lanes, 1, _case.StorageType, _case.ValuesInKeys, _case.Scales, _case.Problem.Present, true);
        KeyValueShard shard = LoadShard(shards.PlanOf(0));
        int rows = _call.Queries.RowsFor(shape);
        Region region = Device.Allocate(PartialAttention.FloatsFor(rows, shape.ValueDim) * sizeof(float), ElementType.Float32);
        var alone = new PartialAttention(region, rows, shape.ValueDim);
        Device.AttendLanes(_case.Problem, _call.Queries, shard, [new LaneNode(0, LaneTree.Lanes)], [alone]);
        long digest = DigestOf(alone);
        Device.Free(region);
        Device.Free(shard.Contents);
        return digest;
    });

    /// <summary>On rank 0 the results of the last run: the group's, and that of each rank whose bits are other than rank 0's. Empty elsewhere.</summary>
    public IReadOnlyList<AttentionResult> Results(long[] digests)
    {
        AttentionResult?[] all = [_group.Together(() => ResultGatherer.Gather(_group, _call, _state!))];
        if (!_case.Plan.IsSharded)
        {
            IEnumerable<int> others = Enumerable.Range(1, _group.Size - 1).Where(rank => digests[rank] != digests[0]);
            all = [.. all, .. others.Select(rank => ResultGatherer.GatherFrom(_group, _call, _state!, rank))];
        }

        return [.. all.OfType<AttentionResult>()];
    }

    /// <summary>Float64's rows of this case on rank 0; null elsewhere.</summary>
    public VerificationRows? Expected() => _group.Together(() => _group.IsRoot
        ? VerificationRows.Compute(
            new ReferenceCall(
                _case.Problem.Shape, _case.Problem.Options, _tensors.Query, _tensors.Key, _case.ValuesOf(_tensors), _case.StorageType, _case.Scales),
            _case.Seed)
        : null);

    /// <inheritdoc/>
    public void Dispose()
    {
        _step.Dispose();
        _call.Dispose();
        _tensors.Dispose();
    }

    private KeyValueShard LoadShard(ShardPlan plan) =>
        KeyValueLoader.Load(Device, plan, _tensors.Key, _case.ValuesOf(_tensors), NonFinitePolicy.Error);

    private QueryBlock LoadQueries(int[] indices) =>
        QueryLoader.Load(Device, _case.Problem.Shape, _tensors.Query, indices, NonFinitePolicy.Error, _case.Problem.Present);

    private long DigestOf(PartialAttention state)
    {
        using var host = new HostState(state.Rows, state.ValueDim);
        return (long)Fingerprint.Of(host.Take(Device, state).Region.AsSpan<byte>());
    }
}
