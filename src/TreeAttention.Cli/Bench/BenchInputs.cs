using System;
using System.Collections.Generic;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Bench;

/// <summary>What a benchmark attends over: tensors for the loaders, and a reference for some of the rows.</summary>
internal interface IBenchInputs : IDisposable
{
    /// <summary>Sizes of the call.</summary>
    AttentionShape Shape { get; }

    /// <summary>Storage of keys and values.</summary>
    ElementType StorageType { get; }

    /// <summary>Scales of storage that has some; null: 1.</summary>
    KeyValueScales? Scales { get; }

    /// <summary>Values are the first elements of the keys.</summary>
    bool ValuesInKeys { get; }

    /// <summary>What ranks compare before work.</summary>
    IEnumerable<KeyValuePair<string, string>> Settings { get; }

    /// <summary>Finds the scales that follow from the numbers. Every rank calls it.</summary>
    void SettleScales(AttentionGroup group, ScalesRequest scales);

    /// <summary>Loads one rank's keys and values.</summary>
    KeyValueShard LoadShard(IDevice device, ShardPlan plan);

    /// <summary>Loads some queries.</summary>
    QueryBlock LoadQueries(IDevice device, int[] indices);

    /// <summary>Computes the rows that results are held against; called once, on rank 0.</summary>
    Func<AttentionResult, VerificationReport> PrepareCheck(AttentionProblem problem);
}

/// <summary>A benchmark over real tensors from files.</summary>
internal sealed class FileBenchInputs(TensorRequest request) : IBenchInputs
{
    private readonly InputTensors _tensors = new(request);

    public AttentionShape Shape => _tensors.Shape;

    public ElementType StorageType => _tensors.StorageType;

    public KeyValueScales? Scales => _tensors.Scales;

    public bool ValuesInKeys => request.ValueFromKey is not null;

    public IEnumerable<KeyValuePair<string, string>> Settings => _tensors.Settings;

    public void SettleScales(AttentionGroup group, ScalesRequest scales) => _tensors.SettleScales(group);

    public KeyValueShard LoadShard(IDevice device, ShardPlan plan) =>
        KeyValueLoader.Load(device, plan, _tensors.Key, _tensors.Value, request.NonFinite);

    public QueryBlock LoadQueries(IDevice device, int[] indices) =>
        QueryLoader.Load(device, Shape, _tensors.Query, indices, request.NonFinite);

    public Func<AttentionResult, VerificationReport> PrepareCheck(AttentionProblem problem)
    {
        var rows = VerificationRows.Compute(
            new ReferenceCall(Shape, problem.Options, _tensors.Query, _tensors.Key, _tensors.Value, StorageType, Scales), Seeds.Default);
        return result => rows.Check(result.Output, result.Lse);
    }

    public void Dispose() => _tensors.Dispose();
}

/// <summary>A benchmark over numbers that every rank makes for itself; the check remakes one KV head.</summary>
internal sealed class SyntheticBenchInputs(AttentionShape shape, ElementType storageType, KeyValueScales? scales, bool valuesInKeys)
    : IBenchInputs
{
    public AttentionShape Shape => shape;

    public ElementType StorageType => storageType;

    public KeyValueScales? Scales { get; private set; } = scales;

    public bool ValuesInKeys => valuesInKeys;

    public IEnumerable<KeyValuePair<string, string>> Settings => [new("sizes", shape.ToString())];

    public void SettleScales(AttentionGroup group, ScalesRequest scales)
    {
        using var tensors = new SyntheticTensors(shape with { QueryLength = 0 }, Seeds.Default);
        var sizes = new CacheOptions
        {
            Rows = shape.Batch,
            KvHeads = shape.KvHeads,
            HeadDim = shape.HeadDim,
            ValueDim = shape.ValueDim,
            ValuesInKeys = valuesInKeys,
            MaxLength = shape.KeyLength,
        };
        Scales = AutoScales.Settle(group, scales, Scales, storageType, sizes, shape.KeyLength, _ => tensors);
    }

    public KeyValueShard LoadShard(IDevice device, ShardPlan plan)
    {
        using var tensors = new SyntheticTensors(shape, Seeds.Default);
        tensors.Fill(plan);
        return KeyValueLoader.Load(device, plan, tensors.Key, ValuesOf(tensors), NonFinitePolicy.Error);
    }

    public QueryBlock LoadQueries(IDevice device, int[] indices)
    {
        using var tensors = new SyntheticTensors(shape, Seeds.Default);
        return QueryLoader.Load(device, shape, tensors.Query, indices, NonFinitePolicy.Error);
    }

    public Func<AttentionResult, VerificationReport> PrepareCheck(AttentionProblem problem)
    {
        int kvHead = shape.KvHeads / 2;
        using var head = SyntheticTensors.OneHead(shape, Seeds.Default, kvHead);
        var alone = new ReferenceCall(
            shape with { KvHeads = 1, QueryHeads = shape.GroupSize }, problem.Options with { Scale = problem.Scale },
            head.Query, head.Key, ValuesOf(head), storageType, Scales?.OfHead(kvHead));
        var rows = VerificationRows.Compute(alone, Seeds.Default);
        return result =>
        {
            AttentionResult part = result.HeadsOf(kvHead * shape.GroupSize, shape.GroupSize);
            return rows.Check(part.Output, part.Lse);
        };
    }

    public void Dispose()
    {
    }

    private TensorView ValuesOf(SyntheticTensors tensors) =>
        valuesInKeys ? tensors.Key.TruncateLastAxis("value", shape.ValueDim) : tensors.Value;
}
