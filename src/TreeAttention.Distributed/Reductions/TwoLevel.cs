using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>The topology-aware tree: inside each node to its leader, a butterfly among the leaders, and back inside the nodes.</summary>
/// <remarks>
/// A state crosses between nodes log2(nodes) times per node, whatever the ranks of a node. Inside a node the canonical
/// tree is walked by single messages. Scratch: one state; none on one rank.
/// </remarks>
internal sealed class TwoLevelReduction : Reduction
{
    private readonly int[] _members;
    private readonly int _place;
    private readonly FoldStep[] _steps;
    private readonly PartialAttention? _received;
    private readonly ButterflyExchange? _leaders;

    public TwoLevelReduction(RankContext context, int rows, int valueDim, IReadOnlyList<int> nodes)
        : base(context, rows, valueDim)
    {
        int ranks = Transport.Size;
        if (nodes.Count != ranks)
        {
            throw new FaultException(
                FaultCode.CommandLine, $"{Setting.NodesOfPlan} names the node of {nodes.Count} ranks, but there are {ranks}: one for each rank.");
        }

        int[] all = [.. Enumerable.Range(0, ranks)];
        _members = [.. all.Where(rank => nodes[rank] == nodes[Transport.Rank])];
        _place = Array.IndexOf(_members, Transport.Rank);
        _steps = FoldTree.StepsFor(_members.Length);
        if (ranks > 1)
        {
            _received = AllocateState();
            int[] leaders = [.. all.GroupBy(rank => nodes[rank]).Select(node => node.First()).Order()];
            _leaders = _place == 0 ? new ButterflyExchange(context, leaders, _received) : null;
        }
    }

    public override ReductionKind Kind => ReductionKind.TwoLevel;

    private protected override string Operation => "two-level exchange";

    private protected override void FoldAll(PartialAttention state)
    {
        foreach (FoldStep step in _steps)
        {
            if (step.From == _place)
            {
                Transport.Send(state.Region, _members[step.Into]);
            }
            else if (step.Into == _place)
            {
                Transport.Receive(_received!.Region, _members[step.From]);
                Context.Device.Merge(state, _received);
            }
        }

        _leaders?.Fold(state);
        for (int i = _steps.Length - 1; i >= 0; i--)
        {
            if (_steps[i].Into == _place)
            {
                Transport.Send(state.Region, _members[_steps[i].From]);
            }
            else if (_steps[i].From == _place)
            {
                Transport.Receive(state.Region, _members[_steps[i].Into]);
            }
        }
    }
}
