using System;
using System.Linq;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Ranks;

/// <summary>States that every rank can compute for every other one, and their merge in float64.</summary>
internal static class StateSample
{
    /// <summary>Fills the memory with the state of a rank. Some rows saw no key, on some ranks or on all.</summary>
    internal static PartialAttention Fill(HostMemory memory, int rows, int valueDim, int rank)
    {
        var state = new PartialAttention(memory.Region, rows, valueDim);
        state.Clear();
        for (int row = 0; row < rows; row++)
        {
            if (!IsEmpty(rank, row))
            {
                (state.Max[row], state.Sum[row]) = (Max(rank, row), Sum(rank, row));
                for (int i = 0; i < valueDim; i++)
                {
                    state.Output[(row * valueDim) + i] = Output(rank, row, i);
                }
            }
        }

        return state;
    }

    /// <summary>Holds the state against the merge of all ranks.</summary>
    internal static void RequireMergeOf(PartialAttention state, int ranks)
    {
        for (int row = 0; row < state.Rows; row++)
        {
            int[] present = [.. Enumerable.Range(0, ranks).Where(rank => !IsEmpty(rank, row))];
            double max = present.Length == 0 ? double.NegativeInfinity : present.Max(rank => Max(rank, row));
            double sum = present.Sum(rank => Weight(rank, row, max));
            Close(max, state.Max[row], $"max of row {row}");
            Close(sum, state.Sum[row], $"sum of row {row}");
            for (int i = 0; i < state.ValueDim; i++)
            {
                double output = present.Sum(rank => Weight(rank, row, max) / sum * Output(rank, row, i));
                Close(output, state.Output[(row * state.ValueDim) + i], $"output {row}, {i}");
            }
        }
    }

    private static double Weight(int rank, int row, double max) => Sum(rank, row) * Math.Exp(Max(rank, row) - max);

    private static void Close(double expected, float actual, string what) => Check.That(
        expected == actual || Math.Abs(expected - actual) <= 1e-5 * Math.Max(1, Math.Abs(expected)), $"{what} is {actual}, not {expected}");

    private static bool IsEmpty(int rank, int row) => row % 11 == 10 || (rank + row) % 5 == 4;

    private static float Max(int rank, int row) => ((rank * 7) + (row * 3)) % 13 - 6.5f;

    private static float Sum(int rank, int row) => 1 + (((rank * 5) + row) % 9 * 0.25f);

    private static float Output(int rank, int row, int i) => (((rank * 31) + (row * 17) + (i * 7)) % 101 / 50f) - 1;
}
