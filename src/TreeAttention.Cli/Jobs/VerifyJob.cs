using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>One rank's part of <c>treeattn verify</c>: the transport's laws, then every algorithm on every case against float64.</summary>
internal sealed class VerifyJob(VerifyRequest request, AttentionGroup group)
{
    // These promise the same bits on every rank whatever the library below does.
    private static readonly ReductionKind[] _sameBits = [ReductionKind.AllGather, ReductionKind.Butterfly, ReductionKind.OneShot, ReductionKind.Lanes];

    private readonly VerifyTally _tally = new();

    /// <summary>Does the work; every rank returns the same code.</summary>
    public FaultCode Run()
    {
        group.Agree([new("version", ProductVersion.Text), new("--seed", Settlement.Text(request.Seed)), new("--cases", Settlement.Text(request.Cases))]);
        foreach ((string law, bool holds) in TransportLaws.Check(group))
        {
            Settle(law, holds, "the transport gave other values");
        }

        for (int i = 0; i < request.Cases; i++)
        {
            CheckCase(VerifyCase.Create(request.Seed + i));
        }

        if (group.IsRoot)
        {
            Print();
        }

        return _tally.Failed == 0 ? FaultCode.None : FaultCode.OutsideTolerance;
    }

    private void CheckCase(VerifyCase verifyCase)
    {
        using var tensors = new SyntheticTensors(verifyCase.Problem.Shape, verifyCase.Seed);
        for (int position = 0; position < verifyCase.Problem.Shape.KeyLength; position++)
        {
            tensors.FillKey(position);
        }

        IEnumerable<PlanRequest> replicated = Contestants.Plans(group, QueryPlacement.Replicated)
            .Select(plan => new PlanRequest(plan, verifyCase.Layout, false));
        IEnumerable<PlanRequest> sharded = Contestants.Plans(group, QueryPlacement.Sharded)
            .Select(plan => new PlanRequest(plan, verifyCase.Layout, false));
        PlanRequest reproducible = new(
            new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes, QueryPlacement.Replicated), ShardLayout.Lanes, true);
        foreach (PlanRequest plan in (PlanRequest[])[.. replicated, .. sharded, reproducible])
        {
            CheckPlan(verifyCase, tensors, plan);
        }
    }

    private void CheckPlan(VerifyCase verifyCase, SyntheticTensors tensors, PlanRequest plan)
    {
        IDevice device = group.Context.Device;
        using var call = new ShardedCall(
            group, verifyCase.Problem, plan, verifyCase.StorageType, valuesInKeys: false,
            shard => KeyValueLoader.Load(device, shard, tensors.Key, tensors.Value, NonFinitePolicy.Error),
            indices => QueryLoader.Load(device, verifyCase.Problem.Shape, tensors.Query, indices, NonFinitePolicy.Error),
            verifyCase.Scales);
        using AttentionStep step = group.Together(() => call.CreateStep(plan.Plan));
        PartialAttention state = step.Run(call.Queries, call.Shard);
        if (plan.Plan.Algorithm == AttentionAlgorithm.Tree && _sameBits.Contains(plan.Plan.Reduction))
        {
            Settle("same bits on every rank", HaveSameBits(state), $"{Contestants.NameOf(plan.Plan)}, {verifyCase}");
        }

        AttentionResult? result = group.Together(() => ResultGatherer.Gather(group, call, state));
        VerificationReport? report = group.Together(() => result is null ? null : Verification.Check(
            verifyCase.Problem, tensors.Query, tensors.Key, tensors.Value, verifyCase.StorageType, result.Output, result.Lse, verifyCase.Seed,
            verifyCase.Scales));
        string subject = Contestants.NameOf(plan.Plan) + (plan.Plan.Placement == QueryPlacement.Sharded ? " (sharded)" : "");
        Settle(subject, report is null or { Wrong: 0 }, $"error {report?.ErrorMax:E2} over {report?.ErrorBound:E2}, {report?.WorstRow}; {verifyCase}");
    }

    private bool HaveSameBits(PartialAttention state)
    {
        using var host = new HostMemory(state.Region.Bytes, ElementType.Float32);
        group.Context.Device.Copy(state.Region, host.Region);
        byte[] digest = SHA256.HashData(host.Region.AsSpan<byte>());
        long[][] all = group.Gather(MemoryMarshal.Read<long>(digest));
        return all.All(rank => rank[0] == all[0][0]);
    }

    // Rank 0 judges; every rank counts what rank 0 found, so that all end with the same code.
    private void Settle(string subject, bool passed, string whatFailed) =>
        _tally.Count(subject, group.Gather(passed ? 1 : 0).All(rank => rank[0] == 1), whatFailed);

    private void Print()
    {
        TextWriter console = Terminal.Out;
        console.WriteLine($"# {group.Description}; {group.Context.Device.Description}; seed {request.Seed}");
        _tally.Print(console);
        if (request.Json)
        {
            console.WriteLine(ResultRow.Line(json =>
            {
                new ResultRow
                {
                    Algorithm = "all",
                    Transport = group.Context.Transport.Name,
                    Device = group.Context.Device.Name,
                    Dtype = "all",
                    Ranks = group.Size,
                }.WriteMembers(json);
                json.WriteNumber("passed", _tally.Passed);
                json.WriteNumber("failed", _tally.Failed);
            }));
        }

        console.Flush();
    }
}
