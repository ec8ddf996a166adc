using System;
using System.Collections.Generic;
using System.Numerics;

namespace TreeAttention.Distributed;

/// <summary>One merge of the canonical fold: state <c>From</c> is folded into state <c>Into</c>.</summary>
public readonly record struct FoldStep(int Into, int From);

/// <summary>The canonical order in which p states fold: the tree of the butterfly. Every reduction that folds follows it.</summary>
/// <remarks>
/// With p = 2^k + e the first e pairs of neighbours (0,1), (2,3), … fold first; the 2^k states that are left fold with
/// their neighbours at distance 1, 2, 4, …. The merge is commutative to the bit, so both partners of an exchange, and
/// whoever folds a copy of all states, get the same bits; so do two sibling ranks that exchange their shards.
/// </remarks>
public static class FoldTree
{
    /// <summary>The merges in order; afterwards state 0 is the whole. None for one state.</summary>
    public static FoldStep[] StepsFor(int states)
    {
        var steps = new List<FoldStep>();
        int[] survivors = SurvivorsOf(states);
        for (int pair = 0; pair < states - survivors.Length; pair++)
        {
            steps.Add(new FoldStep(2 * pair, (2 * pair) + 1));
        }

        for (int distance = 1; distance < survivors.Length; distance *= 2)
        {
            for (int i = 0; i < survivors.Length; i += 2 * distance)
            {
                steps.Add(new FoldStep(survivors[i], survivors[i + distance]));
            }
        }

        return [.. steps];
    }

    /// <summary>The states that are left after the first pairs folded: a power of two of them, ascending.</summary>
    public static int[] SurvivorsOf(int states)
    {
        int power = (int)BitOperations.RoundUpToPowerOf2((uint)states + 1) / 2;
        int extra = states - power;
        int[] survivors = new int[power];
        for (int i = 0; i < power; i++)
        {
            survivors[i] = i < extra ? 2 * i : i + extra;
        }

        return survivors;
    }

    /// <summary>Folds the states in place; <c>states[0]</c> becomes the whole, the others are used up.</summary>
    /// <param name="device">Where the states lie.</param>
    /// <param name="states">One state for each rank, in rank order.</param>
    /// <param name="steps">What <see cref="StepsFor"/> gave for as many states.</param>
    public static void Fold(IDevice device, ReadOnlySpan<PartialAttention> states, ReadOnlySpan<FoldStep> steps)
    {
        foreach (FoldStep step in steps)
        {
            device.Merge(states[step.Into], states[step.From]);
        }
    }
}
