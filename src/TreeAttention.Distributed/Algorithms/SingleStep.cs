namespace TreeAttention.Distributed;

/// <summary>A rank that holds all keys: its partial is the result, and every rank computes it for itself. Memory: one state.</summary>
internal sealed class SingleStep : AttentionStep
{
    private readonly PartialAttention _state;

    public SingleStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount) => _state = AllocateState(queryCount);

    internal override bool IsCapturable => true;

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        BeginCompute();
        Device.Attend(Problem, queries, shard, _state);
        EndCompute();
        return _state;
    }
}
