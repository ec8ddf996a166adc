using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

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
            group, verifyCase.Problem, new PlanRequest(verifyCase.Plan.Plan, verifyCase.Layout, verifyCase.Plan.IsReproducible),
            verifyCase.StorageType, verifyCase.ValuesInKeys, LoadShard, LoadQueries, verifyCase.Scales);
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
        var shards = new ShardMap(shape, ShardLayout.Lanes, 1, _case.StorageType, _case.ValuesInKeys, _case.Scales);
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
            _case.Problem, _tensors.Query, _tensors.Key, _case.ValuesOf(_tensors), _case.StorageType, _case.Seed, _case.Scales)
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
        QueryLoader.Load(Device, _case.Problem.Shape, _tensors.Query, indices, NonFinitePolicy.Error);

    private long DigestOf(PartialAttention state)
    {
        using var host = new HostMemory(state.Region.Bytes, ElementType.Float32);
        Device.Copy(state.Region, host.Region);
        Device.Synchronize();
        return (long)Fingerprint.Of(host.Region.AsSpan<byte>());
    }
}
