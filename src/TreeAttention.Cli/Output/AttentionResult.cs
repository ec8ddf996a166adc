using System;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Cli.Output;

/// <summary>A finished result: output and log-sum-exp of some queries, a number of heads of each.</summary>
internal sealed class AttentionResult(int batch, int queries, int heads, int valueDim)
{
    /// <summary>[batch, queries, heads, value_dim]</summary>
    public float[] Output { get; } = new float[(long)batch * queries * heads * valueDim];

    /// <summary>[batch, heads, queries]</summary>
    public float[] Lse { get; } = new float[(long)batch * heads * queries];

    /// <summary>Room for the whole result of a call of these sizes.</summary>
    public static AttentionResult Of(AttentionShape shape) => Of(shape, shape.QueryLength);

    /// <summary>Room for the result of so many of a call's queries.</summary>
    public static AttentionResult Of(AttentionShape shape, int queries) => new(shape.Batch, queries, shape.QueryHeads, shape.ValueDim);

    /// <summary>The same numbers in memory of their own.</summary>
    public AttentionResult Copy() => HeadsOf(0, heads);

    /// <summary>All queries, but only so many heads from one on.</summary>
    public AttentionResult HeadsOf(int first, int count)
    {
        var part = new AttentionResult(batch, queries, count, valueDim);
        for (long query = 0; query < (long)batch * queries; query++)
        {
            Array.Copy(Output, ((query * heads) + first) * valueDim, part.Output, query * count * valueDim, (long)count * valueDim);
        }

        for (long row = 0; row < batch; row++)
        {
            Array.Copy(Lse, ((row * heads) + first) * queries, part.Lse, row * count * queries, (long)count * queries);
        }

        return part;
    }

    /// <summary>Takes over one query of a result that has the same heads.</summary>
    public void Put(int row, int query, AttentionResult from, int fromRow, int fromQuery)
    {
        long length = (long)heads * valueDim;
        Array.Copy(from.Output, (((long)fromRow * from.Queries) + fromQuery) * length, Output, (((long)row * queries) + query) * length, length);
        for (int head = 0; head < heads; head++)
        {
            Lse[((((long)row * heads) + head) * queries) + query] = from.Lse[((((long)fromRow * heads) + head) * from.Queries) + fromQuery];
        }
    }

    /// <summary>Takes over all of a part, whose queries have these indices here.</summary>
    public void Scatter(AttentionResult part, int[] indices)
    {
        for (int row = 0; row < batch; row++)
        {
            for (int i = 0; i < indices.Length; i++)
            {
                Put(row, indices[i], part, row, i);
            }
        }
    }

    /// <summary>Sends or receives the numbers: transports move memory that the garbage collector leaves in place.</summary>
    public void Move(Action<Region> move)
    {
        foreach (float[] values in (float[][])[Output, Lse])
        {
            using var fixedMemory = new HostMemory((long)values.Length * sizeof(float), ElementType.Float32);
            Span<float> moved = fixedMemory.Region.AsSpan<float>();
            values.CopyTo(moved);
            move(fixedMemory.Region);
            moved.CopyTo(values);
        }
    }

    private int Queries => queries;
}
