using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>ring-query with sharded queries: the keys stay, each rank's queries travel with their running partial and come home.</summary>
/// <remarks>
/// A message is the partial followed by its queries, p-1 hops long; on the last hop, home, the queries are left away. A rank's
/// result is folded in the order of the ranks that its queries visit. Memory: two travelling blocks and one state, each of
/// the rank with the most queries.
/// </remarks>
internal sealed class RingQueryStep : AttentionStep
{
    private readonly Visitor[] _visitors; // [hops + 1]: the own block, the others as they come, the own block again

    public RingQueryStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        AttentionShape shape = problem.Shape;
        int ranks = Transport.Size;
        int[][] indices = [.. Enumerable.Range(0, ranks)
            .Select(rank => QueryLayout.IndicesOf(QueryPlacement.Sharded, shards.Layout, shape, rank, ranks))];
        int largest = indices.Max(block => block.Length);
        Region[] buffers = [.. Enumerable.Range(0, 2).Select(_ => Allocate(BlockFloats(shape, RowsFor(largest)), ElementType.Float32))];
        Region scratch = AllocateState(largest).Region;
        _visitors = new Visitor[ranks + 1];
        for (int hop = 0; hop <= ranks; hop++)
        {
            int[] block = indices[(Transport.Rank - hop + ranks) % ranks];
            int rows = RowsFor(block.Length);
            long stateFloats = PartialAttention.FloatsFor(rows, shape.ValueDim);
            Region buffer = buffers[hop % 2];
            _visitors[hop] = new Visitor(
                buffer.Slice(0, hop == ranks ? stateFloats : BlockFloats(shape, rows)),
                new PartialAttention(buffer.Slice(0, stateFloats), rows, shape.ValueDim),
                new QueryBlock(buffer.Slice(stateFloats, (long)rows * shape.HeadDim), block),
                new PartialAttention(scratch.Slice(0, stateFloats), rows, shape.ValueDim));
        }
    }

    /// <summary>Floats of a travelling block: a state and its queries.</summary>
    internal static long BlockFloats(AttentionShape shape, int rows) =>
        PartialAttention.FloatsFor(rows, shape.ValueDim) + ((long)rows * shape.HeadDim);

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        int ranks = Transport.Size;
        Device.Copy(queries.Values, _visitors[0].Queries.Values);
        for (int hop = 0; hop < ranks; hop++)
        {
            Visitor visitor = _visitors[hop];
            BeginCompute();
            Device.Attend(Problem, visitor.Queries, shard, hop == 0 ? visitor.State : visitor.Here);
            if (hop > 0)
            {
                Device.Merge(visitor.State, visitor.Here);
            }

            EndCompute();
            if (ranks > 1)
            {
                BeginCommunication("ring hop");
                Region outgoing = hop + 1 == ranks ? visitor.State.Region : visitor.Message;
                Transport.Exchange(outgoing, (Transport.Rank + 1) % ranks, _visitors[hop + 1].Message, (Transport.Rank + ranks - 1) % ranks);
                EndCommunication();
            }
        }

        return _visitors[ranks > 1 ? ranks : 0].State;
    }

    // Message: what arrives; State, Queries: its parts; Here: its partial over this rank's keys.
    private sealed record Visitor(Region Message, PartialAttention State, QueryBlock Queries, PartialAttention Here);
}
