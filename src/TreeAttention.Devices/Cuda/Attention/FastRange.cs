using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Decides where the kernels' fp32 arithmetic is exact enough, by the limits that the CPU's fast kernels have.</summary>
/// <remarks>
/// A bound of a row's scores over a page is |scale|·|query|·|largest key| plus the largest bias. The rule looks at a row and a
/// page alone, so what a row's bits are depends on no other row.
/// </remarks>
internal sealed class FastRange
{
    // Sums of such values over 2^28 keys stay inside fp32's range.
    private const float LargestValue = 1e30f;

    private const int MostKept = 64;

    // By the very objects and the version of the pages, without which none changes: a repeated step is judged once.
    private readonly Dictionary<(AttentionProblem Problem, PageLimits[] Limits, long Version, double[] Norms), bool> _verdicts = [];
    private readonly Dictionary<(AttentionProblem Problem, int[] Indices, long Version), (double Bias, bool IsFar)> _biases = [];

    /// <summary>No row needs anything else on any page of the shard. May say no where each row alone would say yes.</summary>
    internal bool HoldsAll(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, double[] norms)
    {
        (AttentionProblem, PageLimits[], long, double[]) call = (problem, shard.Limits, shard.Plan.Version, norms);
        if (!_verdicts.TryGetValue(call, out bool holds))
        {
            if (_verdicts.Count >= MostKept)
            {
                _verdicts.Clear();
            }

            holds = Judge(problem, queries, shard, norms);
            _verdicts.Add(call, holds);
        }

        return holds;
    }

    /// <summary>One row may be computed over one page by the kernels.</summary>
    internal static bool Holds(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, int page, int row, double norm)
    {
        AttentionShape shape = problem.Shape;
        int i = queries.Indices[row % queries.Count];
        int head = row / queries.Count % shape.QueryHeads;
        int batch = row / queries.Count / shape.QueryHeads;
        KeyPage place = shard.Plan.Pages[page];
        PageSpan span = place.Span;
        double bias = problem.Mask.HasBias ? problem.Mask.LargestBias(batch, head, i, span.FirstPosition, span.LastPosition) : 0;
        PageLimits limits = shard.Limits[(place.Slot * shape.KvHeads) + (head / shape.GroupSize)];
        return !IsFar(problem, batch, head, i) && Holds(shard.Plan.Type, Math.Abs(problem.Scale) * norm, limits, bias);
    }

    private bool Judge(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, double[] norms)
    {
        (double bias, bool isFar) = BiasOf(problem, queries.Indices, shard.Plan.Version);
        if (isFar)
        {
            return false;
        }

        AttentionShape shape = problem.Shape;
        ShardPlan plan = shard.Plan;
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            for (int head = 0; head < shape.KvHeads; head++)
            {
                double magnitude = Math.Abs(problem.Scale) * LargestNorm(shape, queries.Count, norms, batch, head);
                for (int page = batch * plan.PagesPerBatch; page < (batch + 1) * plan.PagesPerBatch; page++)
                {
                    if (!Holds(plan.Type, magnitude, shard.Limits[(plan.Pages[page].Slot * shape.KvHeads) + head], bias))
                    {
                        return false;
                    }
                }
            }
        }

        return true;
    }

    // Written so that NaN and ∞ do not hold.
    private static bool Holds(ElementType type, double magnitude, PageLimits limits, double bias) =>
        (magnitude * limits.LargestKeyNorm) + bias <= (type == ElementType.Float32 ? Float32Element.ScoreLimit : Float16Element.ScoreLimit) && limits.LargestValue <= LargestValue;

    private static double LargestNorm(AttentionShape shape, int count, double[] norms, int batch, int kvHead)
    {
        int rows = shape.GroupSize * count;
        double largest = 0;
        foreach (double norm in norms.AsSpan(((batch * shape.KvHeads) + kvHead) * rows, rows))
        {
            largest = norm <= largest ? largest : norm; // NaN stays
            if (double.IsNaN(norm))
            {
                return norm;
            }
        }

        return largest;
    }

    private static bool IsFar(AttentionProblem problem, int batch, int head, int i) =>
        !NearKeys.Exist(problem.Mask, batch, head, i, problem.Mask.Visible(batch, i));

    private (double Bias, bool IsFar) BiasOf(AttentionProblem problem, int[] indices, long version)
    {
        if (!problem.Mask.HasBias)
        {
            return (0, false);
        }

        if (_biases.TryGetValue((problem, indices, version), out (double Bias, bool IsFar) kept))
        {
            return kept;
        }

        double largest = 0;
        bool isFar = false;
        for (int batch = 0; batch < problem.Shape.Batch; batch++)
        {
            for (int head = 0; head < problem.Shape.QueryHeads; head++)
            {
                foreach (int i in indices)
                {
                    double bias = problem.Mask.LargestBias(batch, head, i, 0, Math.Max(0, problem.Shape.KeyLength - 1));
                    largest = bias <= largest ? largest : bias;
                    isFar |= double.IsNaN(bias) || IsFar(problem, batch, head, i);
                }
            }
        }

        if (_biases.Count >= MostKept)
        {
            _biases.Clear();
        }

        return _biases[(problem, indices, version)] = (largest, isFar);
    }
}
