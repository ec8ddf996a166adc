using System;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>Some rows of a state: what one rank folds over all ranks in an all-reduce of states.</summary>
/// <param name="Rows">Rows of the whole state.</param>
/// <param name="ValueDim">Elements of an output row.</param>
/// <param name="First">The first of these rows.</param>
/// <param name="End">The row after the last.</param>
internal readonly record struct StateRows(int Rows, int ValueDim, int First, int End)
{
    private const int BlockElements = 4096; // output elements folded at a time over all ranks: they stay in the cache

    /// <summary>Folds these rows of all states in the canonical order and writes the result to all states.</summary>
    public static void FoldOnAll(ReadOnlySpan<Region> states, ReadOnlySpan<FoldStep> steps, StateRows rows)
    {
        int most = Math.Max(1, BlockElements / rows.ValueDim);
        for (int first = rows.First; first < rows.End; first += most)
        {
            StateRows block = rows with { First = first, End = Math.Min(rows.End, first + most) };
            foreach (FoldStep step in steps)
            {
                PartialMerge.Fold(
                    block.Output(states[step.Into]), block.Max(states[step.Into]), block.Sum(states[step.Into]),
                    block.Output(states[step.From]), block.Max(states[step.From]), block.Sum(states[step.From]), rows.ValueDim);
            }

            foreach (Region state in states[1..])
            {
                block.Output(states[0]).CopyTo(block.Output(state));
                block.Max(states[0]).CopyTo(block.Max(state));
                block.Sum(states[0]).CopyTo(block.Sum(state));
            }
        }
    }

    private Span<float> Output(Region state) =>
        HostRegions.Floats(state, (long)First * ValueDim, (End - First) * ValueDim);

    private Span<float> Max(Region state) => HostRegions.Floats(state, ((long)Rows * ValueDim) + First, End - First);

    private Span<float> Sum(Region state) => HostRegions.Floats(state, ((long)Rows * (ValueDim + 1)) + First, End - First);
}
