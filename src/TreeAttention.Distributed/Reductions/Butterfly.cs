using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>Recursive doubling over exchanges among all ranks.</summary>
/// <remarks>log2 p exchanges of a state (one message more for the ranks past a power of two). Scratch: one state; none on one rank.</remarks>
internal sealed class ButterflyReduction : Reduction
{
    private readonly ButterflyExchange? _exchange;

    public ButterflyReduction(RankContext context, int rows, int valueDim)
        : base(context, rows, valueDim)
    {
        if (Transport.Size > 1)
        {
            _exchange = new ButterflyExchange(context, [.. Enumerable.Range(0, Transport.Size)], AllocateState());
        }
    }

    public override ReductionKind Kind => ReductionKind.Butterfly;

    public override bool IsCapturable => Transport.Size == 1 || base.IsCapturable;

    private protected override string Operation => "butterfly exchange";

    private protected override void FoldAll(PartialAttention state) => _exchange?.Fold(state);
}

/// <summary>Recursive doubling among some ranks, any number of them: the canonical fold with every rank at work.</summary>
/// <remarks>
/// With 2^k + e ranks the odd ones of the first e pairs hand their state to their neighbour and get the result back; the
/// 2^k others exchange states at distance 1, 2, 4, …. Both partners of an exchange merge the same two states.
/// </remarks>
internal sealed class ButterflyExchange
{
    private readonly ITransport _transport;
    private readonly IDevice _device;
    private readonly PartialAttention _received;
    private readonly List<int> _partners = [];
    private readonly int _neighbour = -1; // of this rank's pair, where it has one
    private readonly bool _handsOver;

    /// <summary>Plans the exchanges of one rank.</summary>
    /// <param name="context">The rank.</param>
    /// <param name="ranks">The ranks that take part; this rank is one of them.</param>
    /// <param name="received">Scratch of the shape of the states.</param>
    public ButterflyExchange(RankContext context, int[] ranks, PartialAttention received)
    {
        _transport = context.Transport;
        _device = context.Device;
        _received = received;
        int me = Array.IndexOf(ranks, context.Transport.Rank);
        int[] survivors = FoldTree.SurvivorsOf(ranks.Length);
        int pairs = ranks.Length - survivors.Length;
        if (me < 2 * pairs)
        {
            _neighbour = ranks[me ^ 1];
            _handsOver = me % 2 == 1;
        }

        int place = Array.IndexOf(survivors, me);
        for (int distance = 1; place >= 0 && distance < survivors.Length; distance *= 2)
        {
            _partners.Add(ranks[survivors[place ^ distance]]);
        }
    }

    /// <summary>Folds the states of all ranks that take part, in place.</summary>
    public void Fold(PartialAttention state)
    {
        if (_handsOver)
        {
            _transport.Send(state.Region, _neighbour);
            _transport.Receive(state.Region, _neighbour);
            return;
        }

        if (_neighbour >= 0)
        {
            _transport.Receive(_received.Region, _neighbour);
            _device.Merge(state, _received);
        }

        foreach (int partner in _partners)
        {
            _transport.Exchange(state.Region, partner, _received.Region, partner);
            _device.Merge(state, _received);
        }

        if (_neighbour >= 0)
        {
            _transport.Send(state.Region, _neighbour);
        }
    }
}
