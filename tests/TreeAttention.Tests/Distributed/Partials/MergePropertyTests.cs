using System;
using System.Linq;
using CsCheck;
using TreeAttention.Distributed.Numerics;
using Xunit;

namespace TreeAttention.Tests.Distributed.Partials;

/// <summary>The laws of merging states, over any states; a failure prints its seed and the smallest states that were found.</summary>
public sealed class MergePropertyTests
{
    // Of one row: what it has seen, or nothing.
    private static readonly Gen<(bool Seen, float Max, float Sum)> _rows = Gen.Select(Gen.Bool, Gen.Float[-40, 40], Gen.Float[1, 100]);

    private static readonly Gen<(int Dim, (bool, float, float)[] Rows, float[] Values)[]> _threeStates =
        Gen.Select(Gen.Int[1, 37], Gen.Int[1, 5]).SelectMany((dim, rows) =>
            Gen.Select(_rows.Array[rows], Gen.Float[-1, 1].Array[rows * dim], (row, values) => (dim, row, values)).Array[3]);

    [Fact]
    public void Merging_commutes_to_the_bit_and_the_empty_state_changes_none() => _threeStates.Sample(
        states =>
        {
            using HostMemory a = Make(states[0]), b = Make(states[1]), sameA = Make(states[0]), sameB = Make(states[1]), none = Make(Empty(states[0]));
            int[] before = [.. a.Region.AsSpan<int>()];
            View(a, states[0]).MergeFrom(View(none, states[0]));
            Assert.Equal(before, a.Region.AsSpan<int>().ToArray());

            View(a, states[0]).MergeFrom(View(b, states[1]));
            View(sameB, states[1]).MergeFrom(View(sameA, states[0]));

            Assert.Equal(a.Region.AsSpan<int>().ToArray(), sameB.Region.AsSpan<int>().ToArray());
        },
        iter: 500, threads: 1);

    [Fact]
    public void Both_orders_of_three_states_give_the_mean_in_double_precision() => _threeStates.Sample(
        states =>
        {
            foreach (int[] order in (int[][])[[0, 1, 2], [2, 1, 0], [1, 2, 0]])
            {
                using HostMemory whole = Make(states[order[0]]), second = Make(states[order[1]]), third = Make(states[order[2]]);
                PartialAttention merged = View(whole, states[0]);
                merged.MergeFrom(View(second, states[0]));
                merged.MergeFrom(View(third, states[0]));

                for (int row = 0; row < states[0].Rows.Length; row++)
                {
                    double[] weights = [.. states.Select(state => state.Rows[row] is (true, float max, float sum) ? sum * Math.Exp(max) : 0)];
                    double total = weights.Sum();
                    double lse = merged.Sum[row] == 0 ? double.NegativeInfinity : merged.Max[row] + Math.Log(merged.Sum[row]);
                    Assert.True(total == 0 ? double.IsNegativeInfinity(lse) : Math.Abs(lse - Math.Log(total)) < 1e-4, $"row {row}: lse {lse}");
                    for (int i = row * states[0].Dim; total > 0 && i < (row + 1) * states[0].Dim; i++)
                    {
                        Assert.Equal(states.Select((state, which) => weights[which] / total * state.Values[i]).Sum(), merged.Output[i], 2e-6);
                    }
                }
            }
        },
        iter: 500, threads: 1);

    private static (int Dim, (bool Seen, float Max, float Sum)[] Rows, float[] Values) Empty((int Dim, (bool, float, float)[] Rows, float[] Values) state) =>
        (state.Dim, [.. state.Rows.Select(_ => (false, 0f, 0f))], state.Values);

    private static PartialAttention View(HostMemory memory, (int Dim, (bool, float, float)[] Rows, float[] Values) state) =>
        new(memory.Region, state.Rows.Length, state.Dim);

    private static HostMemory Make((int Dim, (bool Seen, float Max, float Sum)[] Rows, float[] Values) state)
    {
        var memory = new HostMemory(PartialAttention.FloatsFor(state.Rows.Length, state.Dim) * sizeof(float), ElementType.Float32);
        var partial = new PartialAttention(memory.Region, state.Rows.Length, state.Dim);
        partial.Clear();
        for (int row = 0; row < state.Rows.Length; row++)
        {
            if (state.Rows[row].Seen)
            {
                (partial.Max[row], partial.Sum[row]) = (state.Rows[row].Max, state.Rows[row].Sum);
                state.Values.AsSpan(row * state.Dim, state.Dim).CopyTo(partial.Output[(row * state.Dim)..]);
            }
        }

        return memory;
    }
}
