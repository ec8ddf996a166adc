namespace TreeAttention.Distributed;

/// <summary>ring-query with replicated queries: the keys stay, the ranks' partials travel p-1 hops to every rank.</summary>
/// <remarks>
/// All partials are kept and folded in the canonical order, so every rank gets the same bits as by an all-gather.
/// Memory: p states.
/// </remarks>
internal sealed class RingPartialStep : AttentionStep
{
    private readonly PartialAttention[] _states; // [rank] whose partial it is
    private readonly FoldStep[] _steps;

    public RingPartialStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        _states = new PartialAttention[Transport.Size];
        for (int rank = 0; rank < _states.Length; rank++)
        {
            _states[rank] = AllocateState(queryCount);
        }

        _steps = FoldTree.StepsFor(_states.Length);
    }

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        int ranks = Transport.Size;
        int rank = Transport.Rank;
        BeginCompute();
        Device.Attend(Problem, queries, shard, _states[rank]);
        EndCompute();
        BeginCommunication("ring hop");
        for (int hop = 0; hop + 1 < ranks; hop++)
        {
            Region outgoing = _states[(rank - hop + ranks) % ranks].Region;
            Region incoming = _states[(rank - hop - 1 + ranks) % ranks].Region;
            Transport.Exchange(outgoing, (rank + 1) % ranks, incoming, (rank + ranks - 1) % ranks);
        }

        EndCommunication();
        BeginCompute();
        FoldTree.Fold(Device, _states, _steps);
        EndCompute();
        return _states[0];
    }
}
