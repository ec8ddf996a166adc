using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu.Kernels;

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

/// <summary>Whether fp32 holds the weights of a row's keys in spite of its biases.</summary>
internal static class NearKeys
{
    // Added to scores of ordinary size, a bias of this size costs fp32 no digit that counts.
    private const double MostBias = 64;

    /// <summary>Some key that the row sees has a bias that fp32 adds exactly enough; keys further off then weigh nothing, or as little.</summary>
    /// <param name="mask">The rules.</param>
    /// <param name="batch">The batch row.</param>
    /// <param name="head">The query head.</param>
    /// <param name="i">Index of the query.</param>
    /// <param name="visible">Positions that the query may see; a query that sees none needs no key.</param>
    internal static bool Exist(AttentionMask mask, int batch, int head, int i, KeyInterval visible)
    {
        if (visible.IsEmpty)
        {
            return true;
        }

        QueryPlace place = mask.PlaceOf(batch, i);
        float slope = mask.AlibiSlope(place, head);
        if (slope <= 0)
        {
            return true;
        }

        // From the nearest key of the interval outwards, until ALiBi alone is too much.
        long position = place.Position;
        int below = (int)Math.Clamp(position, visible.First, visible.End - 1);
        for (int above = below + 1; below >= visible.First || above < visible.End;)
        {
            bool isBelow = above >= visible.End || (below >= visible.First && position - below <= above - position);
            int key = isBelow ? below-- : above++;
            if (!(slope * Math.Abs(position - key) <= MostBias))
            {
                return false;
            }

            bool isSeen = !mask.HasKeyRules || mask.KeepsInside(batch, i, key);
            if (isSeen && mask.Bias(batch, head, i, key) >= -MostBias)
            {
                return true;
            }
        }

        return true;
    }
}
