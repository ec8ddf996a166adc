using System;
using System.Collections.Generic;
using System.CommandLine;
using System.CommandLine.Parsing;
using System.Linq;
using TreeAttention.Distributed.Layout;

namespace TreeAttention.Cli.Arguments;

/// <summary>How the keys lie and how the partials meet: <c>--algorithm --reduction --shard --shard-lengths --query-placement --reproducible</c>.</summary>
/// <param name="comparesAll">Without --algorithm the command runs every plan that fits (bench), not tree.</param>
/// <param name="grows">The keys are those of a growing cache: always in lanes, queries always on every rank.</param>
internal sealed class PlanArguments(bool comparesAll = false, bool grows = false)
{
    private readonly Option<AttentionAlgorithm> _algorithm = new("--algorithm")
    {
        Description = comparesAll ? "Times this one alone; default is every one that fits." : "How the ranks work together; default tree.",
        HelpName = string.Join('|', Enum.GetValues<AttentionAlgorithm>().Select(algorithm => algorithm.Name())),
        CustomParser = result => ArgumentText.Parsed(result, AttentionAlgorithms.Parse),
    };

    private readonly Option<ReductionKind> _reduction = new("--reduction")
    {
        Description = comparesAll
            ? "Times tree with this one alone; default is every one that fits."
            : "How tree makes one result of the partials; default auto, which rank 0 chooses.",
        HelpName = string.Join('|', Enum.GetValues<ReductionKind>().Where(kind => kind != ReductionKind.Lanes).Select(kind => kind.Name())),
        CustomParser = result => ArgumentText.Parsed(result, ReductionKinds.Parse),
    };

    private readonly Option<ShardLayout?> _shard = new("--shard")
    {
        Description = "Which keys each rank owns: contiguous (default), zigzag, striped, cyclic:N or lanes.",
        CustomParser = result => ArgumentText.Parsed(result, ShardLayout.Parse),
    };

    private readonly Option<int[]?> _shardLengths = new("--shard-lengths")
    {
        Description = "Number of keys of each rank, as 10,0,21; together the key length.",
        CustomParser = result => ArgumentText.Integers(result, 0),
    };

    private readonly Option<QueryPlacement> _queryPlacement = new("--query-placement")
    {
        Description = "replicated: every rank has every query and output. sharded: queries are sharded as the keys are (ring algorithms, gather). Default replicated.",
        HelpName = "replicated|sharded",
        CustomParser = result => ArgumentText.Parsed(result, QueryPlacements.Parse),
    };

    private readonly Option<bool> _reproducible = new("--reproducible")
    {
        Description = "The same bits for any number of ranks, threads and batch neighbours, and any transport: the lanes layout and its reduction.",
    };

    /// <summary>Makes the options known to a command.</summary>
    public void AddTo(Command command)
    {
        command.Add(_algorithm);
        command.Add(_reduction);
        if (!grows)
        {
            command.Add(_shard);
            command.Add(_shardLengths);
            command.Add(_queryPlacement);
        }

        command.Add(_reproducible);
        ArgumentText.AddRule(command, Validate);
    }

    /// <summary>The same bits are asked for, as a rule sees it.</summary>
    public bool IsReproducible(CommandResult command) => command.GetValue(_reproducible);

    /// <summary>What the command line asks for.</summary>
    public PlanRequest Read(ParseResult parsed)
    {
        int[]? lengths = grows ? null : ArgumentText.Given(parsed, _shardLengths);
        bool reproducible = parsed.GetValue(_reproducible);
        ShardLayout layout = reproducible || grows ? ShardLayout.Lanes
            : lengths is not null ? ShardLayout.Lengths(lengths)
            : parsed.GetValue(_shard) ?? ShardLayout.Contiguous;
        ReductionKind reduction = reproducible ? ReductionKind.Lanes : parsed.GetValue(_reduction);
        return new PlanRequest(
            new AttentionPlan(ArgumentText.ValueOr(parsed.CommandResult, _algorithm, AttentionAlgorithm.Tree), reduction, parsed.GetValue(_queryPlacement)),
            layout, reproducible)
        {
            Chosen = parsed.GetResult(_algorithm) is not null || parsed.GetResult(_reduction) is not null,
        };
    }

    private void Validate(CommandResult command)
    {
        ShardLayout? shard = command.GetValue(_shard);
        bool lengths = command.GetResult(_shardLengths) is not null;
        if (lengths && shard is not null)
        {
            command.AddError("--shard and --shard-lengths both say which keys a rank owns: give one of them.");
        }

        AttentionAlgorithm algorithm = ArgumentText.ValueOr(command, _algorithm, AttentionAlgorithm.Tree);
        bool ringsRun = algorithm is not (AttentionAlgorithm.Tree or AttentionAlgorithm.Single)
            || (comparesAll && command.GetResult(_algorithm) is null && command.GetResult(_reduction) is null);
        if (command.GetValue(_queryPlacement) == QueryPlacement.Sharded && !ringsRun)
        {
            command.AddError("--query-placement sharded belongs to the ring algorithms and gather: tree and single need every query on every rank.");
        }

        if (algorithm != AttentionAlgorithm.Tree && command.GetValue(_reduction) != ReductionKind.Auto)
        {
            command.AddError($"--reduction belongs to --algorithm tree; {algorithm.Name()} has none.");
        }

        if (!command.GetValue(_reproducible))
        {
            return;
        }

        if (lengths || (shard is not null && shard != ShardLayout.Lanes) || command.GetValue(_reduction) != ReductionKind.Auto)
        {
            command.AddError("--reproducible means the lanes layout and its own reduction: leave --shard, --shard-lengths and --reduction out.");
        }

        if (algorithm != AttentionAlgorithm.Tree)
        {
            command.AddError($"--reproducible is a mode of --algorithm tree, not of {algorithm.Name()}.");
        }
    }
}

/// <summary>A plan, the layout of the keys, and whether bits must not depend on the ranks.</summary>
internal sealed record PlanRequest(AttentionPlan Plan, ShardLayout Layout, bool Reproducible)
{
    /// <summary>The command line names the algorithm or the reduction; a benchmark then times it alone.</summary>
    public bool Chosen { get; init; }
}

/// <summary>The plans that are compared with each other on a group.</summary>
internal static class ComparedPlans
{
    private static readonly ReductionKind[] _reductions =
    [
        ReductionKind.ThreeAllReduce, ReductionKind.TwoAllReduce, ReductionKind.Fused, ReductionKind.AllGather,
        ReductionKind.Butterfly, ReductionKind.TwoLevel, ReductionKind.AllToAll, ReductionKind.OneShot,
    ];

    private static readonly AttentionAlgorithm[] _others =
        [AttentionAlgorithm.Ring, AttentionAlgorithm.RingNoOverlap, AttentionAlgorithm.RingQuery, AttentionAlgorithm.Gather];

    /// <summary>The reductions that this group's transport can do.</summary>
    public static IEnumerable<ReductionKind> Reductions(AttentionGroup group)
    {
        bool oneNode = !System.Linq.Enumerable.Any(group.Context.Transport.Nodes, node => node != 0);
        foreach (ReductionKind kind in _reductions)
        {
            bool can = kind switch
            {
                ReductionKind.Fused => group.Context.Transport.CanReduceStates,
                ReductionKind.OneShot => oneNode,
                _ => true,
            };
            if (can)
            {
                yield return kind;
            }
        }
    }

    /// <summary>Every plan that fits the placement of the queries: tree with each reduction, each ring, and gather.</summary>
    public static IEnumerable<AttentionPlan> Plans(AttentionGroup group, QueryPlacement placement)
    {
        if (placement == QueryPlacement.Replicated)
        {
            foreach (ReductionKind kind in Reductions(group))
            {
                yield return new AttentionPlan(AttentionAlgorithm.Tree, kind, placement);
            }
        }

        foreach (AttentionAlgorithm other in _others)
        {
            yield return new AttentionPlan(other, ReductionKind.Auto, placement);
        }
    }
}
