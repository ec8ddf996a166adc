using System;

namespace TreeAttention.Testing.Partials;

/// <summary>States with different scales, rows that saw nothing, and ranks that saw nothing.</summary>
internal static class RandomState
{
    /// <summary>Fills the state of a rank; every fifth rank from 3 on saw no key, and so did single rows.</summary>
    public static void Fill(PartialAttention state, int rank, int seed = 20261121)
    {
        var random = new Random(seed + (1000 * rank));
        state.Clear();
        for (int row = 0; row < state.Rows; row++)
        {
            if (rank % 5 == 3 || (row + rank) % 7 == 4)
            {
                continue;
            }

            state.Max[row] = (float)((random.NextDouble() - 0.5) * 20);
            state.Sum[row] = (float)(1 + (random.NextDouble() * 50));
            foreach (ref float value in state.Output.Slice(row * state.ValueDim, state.ValueDim))
            {
                value = (float)((random.NextDouble() - 0.5) * 4);
            }
        }
    }
}
