using System;
using System.Linq;
using System.Runtime.InteropServices;
using System.Threading;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;
using TreeAttention.Runtime.Groups;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Testing.Devices;

namespace TreeAttention.Ranks;

/// <summary>A group formed as the program forms it, in which one rank alone has a bug: it must end all, whatever the others wait in.</summary>
internal static class BuggyRank
{
    private static readonly AttentionShape _shape = new(1, 3, 60, 2, 1, 8, 8);

    private static readonly GroupOptions _options = new() { Log = (_, message) => Console.Error.WriteLine($"treeattn: {message}") };

    /// <summary>Runs until the bug, or until memory is short: in an agreement, while loading, or during a step of an algorithm.</summary>
    internal static int Run(string place)
    {
        try
        {
            return (int)GroupLauncher.Run(_options, ProcessEnvironment.Read(), group => Work(group, place));
        }
        catch (InvalidOperationException)
        {
            return (int)FaultCode.Bug;
        }
        catch (FaultException fault)
        {
            return (int)fault.Code;
        }
    }

    /// <summary>A group that a program joins by itself, as the library's users do: the device of its last rank fails in a step of the given kind.</summary>
    internal static int RunStep(string kind)
    {
        using var whole = AttentionGroup.Join(_options with { Device = DeviceKind.Cpu, Threads = 1 });
        using var failing = new FailingDevice(whole.Context.Device, 0);
        using AttentionGroup? onFailing = whole.Rank == whole.Size - 1
            ? new AttentionGroup(whole.Context with { Device = failing }, whole, whole.Description)
            : null;
        AttentionGroup group = onFailing ?? whole;
        using ShardedKvCache cache = group.CreateCache(new CacheOptions { KvHeads = 1, HeadDim = 8, ValueDim = 8, MaxLength = 64 });
        var options = new DecodeOptions { QueryHeads = 2 };
        float[] token = new float[8];
        switch (kind)
        {
            case "speculate":
                using (SpeculativeStep step = group.CreateSpeculativeStep(cache, options, TokenTree.FromParents([-1])))
                {
                    group.Speculate(step, 0, new float[16], token, token, new float[16], new float[2]);
                }

                break;
            case "prefill":
                using (PrefillStep step = group.CreatePrefill(cache, new PrefillOptions { Lengths = [50], QueryHeads = 2 }))
                {
                    int tokens = step.Tokens.Count;
                    group.Prefill(step, 0, new float[tokens * 16], new float[tokens * 8], new float[tokens * 8], new float[tokens * 16], new float[tokens * 2]);
                }

                break;
            default:
                using (DecodeStep step = group.CreateStep(cache, options))
                {
                    group.Decode(step, 0, new float[16], token, token, new float[16], new float[2]);
                }

                break;
        }

        return 0;
    }

    /// <summary>Two ranks of this process that nobody disposes of, one of them waiting for the other: the process ends all the same, and nothing was written.</summary>
    internal static int LeaveUndisposed()
    {
        var options = new CacheOptions { KvHeads = 1, HeadDim = 8, ValueDim = 8, MaxLength = 64 };
        AttentionGroup[] groups = [.. AttentionGroup.JoinInProcess(2, new GroupOptions { Threads = 1, StallTimeout = Timeout.InfiniteTimeSpan })];
        var alone = AttentionGroup.Join(new GroupOptions { Threads = 1 });
        alone.CreateCache(options).Append(0, new float[8], new float[8]);
        new Thread(() => groups[0].CreateCache(options)) { IsBackground = true }.Start();
        Thread.Sleep(100);
        return groups.Length == 2 ? 0 : 1;
    }

    /// <summary>A group of the library, which the last rank leaves while the others step: by an exception that its program catches (3), by one that nobody does, or just so.</summary>
    internal static int LeaveEarly(string how)
    {
        try
        {
            using var group = AttentionGroup.Join(_options with { Device = DeviceKind.Cpu, Threads = 1 });
            using ShardedKvCache cache = group.CreateCache(new CacheOptions { KvHeads = 1, HeadDim = 8, ValueDim = 8, MaxLength = 64 });
            using DecodeStep step = group.CreateStep(cache, new DecodeOptions { QueryHeads = 2 });
            float[] token = new float[8];
            for (int run = 0; run < 20; run++)
            {
                if (run == 10 && group.Rank == group.Size - 1)
                {
                    if (how.StartsWith("return", StringComparison.Ordinal))
                    {
                        return 0;
                    }

                    throw new NotSupportedException("the caller's own exception");
                }

                if (run == 10 && how.EndsWith("agreement", StringComparison.Ordinal))
                {
                    group.Together(() => { });
                }

                group.Decode(step, 0, new float[16], token, token, new float[16], new float[2]);
            }
        }
        catch (NotSupportedException error) when (how.StartsWith("catch", StringComparison.Ordinal))
        {
            Console.Out.WriteLine($"caught {error.Message}");
            return 3;
        }

        return 0;
    }

    private static FaultCode Work(AttentionGroup group, string place)
    {
        group.Agree([]);
        switch (place)
        {
            case "agreement":
                FailOnLastRank(group);
                group.Agree([]);
                break;
            case "memory":
                if (group.Rank == group.Size - 1)
                {
                    Marshal.AllocHGlobal(nint.MaxValue);
                }

                group.Agree([]);
                break;
            case "loading":
                group.Together(() => FailOnLastRank(group));
                break;
            default:
                Attend(group, AttentionAlgorithms.Parse(place));
                break;
        }

        return FaultCode.None;
    }

    private static void Attend(AttentionGroup group, AttentionAlgorithm algorithm)
    {
        IDevice device = group.Context.Device;
        using var tensors = new SyntheticTensors(_shape, 1);
        var shards = new ShardMap(_shape, ShardLayout.Contiguous, group.Size, ElementType.Float32, valuesInKeys: false);
        tensors.Fill(shards.PlanOf(group.Rank));
        KeyValueShard shard = KeyValueLoader.Load(device, shards.PlanOf(group.Rank), tensors.Key, tensors.Value, NonFinitePolicy.Error);
        QueryBlock queries = QueryLoader.Load(
            device, _shape, tensors.Query, [.. Enumerable.Range(0, _shape.QueryLength)], NonFinitePolicy.Error);
        var plan = new AttentionPlan(algorithm, ReductionKind.Butterfly, QueryPlacement.Replicated);
        using AttentionStep step = StepFactory.Create(group.Context, new AttentionProblem(_shape, new AttentionOptions()), shards, plan, _shape.QueryLength);
        for (int run = 0; ; run++)
        {
            if (run == 10)
            {
                FailOnLastRank(group);
            }

            step.Run(queries, shard);
        }
    }

    private static void FailOnLastRank(AttentionGroup group)
    {
        if (group.Rank == group.Size - 1)
        {
            throw new InvalidOperationException("a bug of one rank");
        }
    }
}
