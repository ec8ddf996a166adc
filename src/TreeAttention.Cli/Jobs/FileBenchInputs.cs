using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>A benchmark over real tensors from files.</summary>
internal sealed class FileBenchInputs(TensorRequest request) : IBenchInputs
{
    private const int Seed = 20261121;
    private readonly InputTensors _tensors = new(request);

    public AttentionShape Shape => _tensors.Shape;

    public ElementType StorageType => _tensors.StorageType;

    public KeyValueScales? Scales => _tensors.Scales;

    public bool ValuesInKeys => request.ValueFromKey is not null;

    public IEnumerable<KeyValuePair<string, string>> Settings => _tensors.Settings;

    public KeyValueShard LoadShard(IDevice device, ShardPlan plan) =>
        KeyValueLoader.Load(device, plan, _tensors.Key, _tensors.Value, request.NonFinite);

    public QueryBlock LoadQueries(IDevice device, int[] indices) =>
        QueryLoader.Load(device, Shape, _tensors.Query, indices, request.NonFinite);

    public Func<AttentionResult, VerificationReport> PrepareCheck(AttentionProblem problem)
    {
        var rows = VerificationRows.Compute(problem, _tensors.Query, _tensors.Key, _tensors.Value, StorageType, Seed, Scales);
        return result => rows.Check(result.Output, result.Lse);
    }

    public void Dispose() => _tensors.Dispose();
}
