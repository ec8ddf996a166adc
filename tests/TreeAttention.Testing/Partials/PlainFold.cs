using System;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Testing.Partials;

/// <summary>The fold of states in float64, by the definition: weights e^(max - top), one row after the other.</summary>
internal sealed class PlainFold
{
    private readonly double[] _output;
    private readonly double[] _lse;
    private readonly int _valueDim;

    private PlainFold(PartialAttention[] states)
    {
        int rows = states[0].Rows;
        _valueDim = states[0].ValueDim;
        _output = new double[rows * _valueDim];
        _lse = new double[rows];
        for (int row = 0; row < rows; row++)
        {
            double top = double.NegativeInfinity;
            foreach (PartialAttention state in states)
            {
                top = Math.Max(top, state.Max[row]);
            }

            double whole = 0;
            foreach (PartialAttention state in states)
            {
                double weight = state.Sum[row] == 0 ? 0 : state.Sum[row] * Math.Exp(state.Max[row] - top);
                whole += weight;
                for (int i = 0; i < _valueDim; i++)
                {
                    _output[(row * _valueDim) + i] += weight * state.Output[(row * _valueDim) + i];
                }
            }

            _lse[row] = whole == 0 ? double.NegativeInfinity : top + Math.Log(whole);
            for (int i = 0; i < _valueDim && whole > 0; i++)
            {
                _output[(row * _valueDim) + i] /= whole;
            }
        }
    }

    /// <summary>The fold of what <see cref="RandomState"/> gives the ranks.</summary>
    public static PlainFold OfRandomStates(int ranks, int rows, int valueDim)
    {
        using var memory = new HostFloats((int)(ranks * PartialAttention.FloatsFor(rows, valueDim)));
        var states = new PartialAttention[ranks];
        long floats = PartialAttention.FloatsFor(rows, valueDim);
        for (int rank = 0; rank < ranks; rank++)
        {
            states[rank] = new PartialAttention(memory.Region.Slice(rank * floats, floats), rows, valueDim);
            RandomState.Fill(states[rank], rank);
        }

        return new PlainFold(states);
    }

    /// <summary>The largest difference of outputs and log-sum-exps; infinite where one is not a number or one alone is empty.</summary>
    public double Difference(PartialAttention state)
    {
        double most = 0;
        for (int row = 0; row < state.Rows; row++)
        {
            double lse = state.Sum[row] == 0 ? double.NegativeInfinity : state.Max[row] + Math.Log(state.Sum[row]);
            most = Math.Max(most, lse == _lse[row] ? 0 : Finite(lse - _lse[row]));
            for (int i = 0; i < _valueDim; i++)
            {
                most = Math.Max(most, Finite(state.Output[(row * _valueDim) + i] - _output[(row * _valueDim) + i]));
            }
        }

        return most;
    }

    public void AssertClose(PartialAttention state) => Assert.InRange(Difference(state), 0, 4e-6);

    private static double Finite(double difference) => double.IsFinite(difference) ? Math.Abs(difference) : double.PositiveInfinity;
}
