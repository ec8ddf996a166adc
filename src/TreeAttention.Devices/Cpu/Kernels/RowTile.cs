using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Neighbouring query rows of one batch row and KV head, with what the mask rules say of each: what a kernel works on.</summary>
/// <remarks>Row r of a KV head is query r mod count of the group's head r / count, as in a partial.</remarks>
internal sealed unsafe class RowTile
{
    /// <summary>The call.</summary>
    internal AttentionProblem Problem { get; private set; } = null!;

    /// <summary>The batch row.</summary>
    internal int Batch { get; private set; }

    /// <summary>The KV head.</summary>
    internal int KvHead { get; private set; }

    /// <summary>Rows.</summary>
    internal int Count { get; private set; }

    /// <summary>What the dot product of a query with a stored key is multiplied by: the call's scale and that of the keys.</summary>
    internal double ScoreScale { get; private set; }

    /// <summary>What a stored key element is multiplied by.</summary>
    internal float KeyScale { get; private set; }

    /// <summary>What a stored value element is multiplied by.</summary>
    internal float ValueScale { get; private set; }

    /// <summary>[count, head_dim] unscaled.</summary>
    internal float* Queries { get; private set; }

    /// <summary>[count] query head of each row.</summary>
    internal int[] Head { get; private set; } = [];

    /// <summary>[count] index of each row's query in its sequence.</summary>
    internal int[] Index { get; private set; } = [];

    /// <summary>[count] positions that each row may see.</summary>
    internal KeyInterval[] Visible { get; private set; } = [];

    /// <summary>[count] |scale|·|query|, +∞ for a row that needs the precise kernel on every page.</summary>
    internal double[] Magnitude { get; private set; } = [];

    /// <summary>Positions that any row may see: the hull of <see cref="Visible"/>.</summary>
    internal KeyInterval Hull { get; private set; }

    /// <summary>Makes room for so many rows.</summary>
    internal void Reserve(int rows)
    {
        Head = new int[rows];
        Index = new int[rows];
        Visible = new KeyInterval[rows];
        Magnitude = new double[rows];
    }

    /// <summary>Takes rows <paramref name="first"/> to <paramref name="first"/> + <paramref name="count"/> - 1 of a KV head.</summary>
    internal void Take(AttentionProblem problem, QueryBlock queries, ShardPlan plan, int batch, int kvHead, int first, int count)
    {
        AttentionShape shape = problem.Shape;
        (Problem, Batch, KvHead, Count) = (problem, batch, kvHead, count);
        (KeyScale, ValueScale) = (plan.KeyScaleOf(kvHead), plan.ValueScaleOf(kvHead));
        ScoreScale = problem.Scale * KeyScale;
        long head = ((long)batch * shape.QueryHeads) + ((long)kvHead * shape.GroupSize);
        Queries = (float*)queries.Values.Address + (((head * queries.Count) + first) * shape.HeadDim);
        int low = int.MaxValue;
        int high = 0;
        for (int row = 0; row < count; row++)
        {
            Head[row] = (kvHead * shape.GroupSize) + ((first + row) / queries.Count);
            Index[row] = queries.Indices[(first + row) % queries.Count];
            Visible[row] = problem.Mask.Visible(batch, Index[row]);
            Magnitude[row] = MagnitudeOf(row);
            if (!Visible[row].IsEmpty)
            {
                low = Math.Min(low, Visible[row].First);
                high = Math.Max(high, Visible[row].End);
            }
        }

        Hull = new KeyInterval(low, high);
    }

    private double MagnitudeOf(int row)
    {
        double squares = 0;
        float* query = Queries + ((long)row * Problem.Shape.HeadDim);
        for (int i = 0; i < Problem.Shape.HeadDim; i++)
        {
            squares += (double)query[i] * query[i];
        }

        return NearKeys.Exist(Problem.Mask, Batch, Head[row], Index[row], Visible[row]) ? Math.Sqrt(squares) * Math.Abs(Problem.Scale) : double.PositiveInfinity;
    }
}
