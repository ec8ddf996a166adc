using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Testing.Partials;

/// <summary>Partials in host memory, empty or random, with the numbers that merges go wrong on.</summary>
internal sealed class RandomStates(int rows, int valueDim, int seed) : IDisposable
{
    private static readonly float[] _special =
        [0f, -0f, float.NaN, float.PositiveInfinity, float.NegativeInfinity, float.Epsilon, -1e-40f, float.MaxValue, float.MinValue];

    // A row that has seen a key has a positive sum and, unless it is not finite, a maximum above -∞.
    private static readonly float[] _specialSums = [float.NaN, float.PositiveInfinity, float.Epsilon, 1e-40f, float.MaxValue];
    private static readonly float[] _specialMaxima =
        [0f, -0f, float.NaN, float.PositiveInfinity, float.Epsilon, -1e-40f, float.MaxValue, float.MinValue];

    private readonly List<HostMemory> _memories = [];
    private readonly Random _random = new(seed);

    /// <summary>The identity.</summary>
    public PartialAttention Empty()
    {
        var memory = new HostMemory(PartialAttention.FloatsFor(rows, valueDim) * sizeof(float), ElementType.Float32);
        _memories.Add(memory);
        var state = new PartialAttention(memory.Region, rows, valueDim);
        state.Clear();
        return state;
    }

    /// <summary>Every row has seen keys: outputs of both signs, maxima up to ±scale, sums from 1 on.</summary>
    public PartialAttention Full(double scale = 5)
    {
        PartialAttention state = Empty();
        foreach (ref float element in state.Output)
        {
            element = (float)((_random.NextDouble() * 2) - 1);
        }

        for (int row = 0; row < rows; row++)
        {
            state.Max[row] = (float)(((_random.NextDouble() * 2) - 1) * scale);
            state.Sum[row] = (float)(1 + (_random.NextDouble() * 50));
        }

        return state;
    }

    /// <summary>Like <see cref="Full"/>, but one number in four is special and one row in four is empty.</summary>
    public PartialAttention Wild()
    {
        PartialAttention state = Full(100);
        foreach (ref float element in state.Output)
        {
            element = _random.Next(4) == 0 ? _special[_random.Next(_special.Length)] : element;
        }

        for (int row = 0; row < rows; row++)
        {
            state.Max[row] = _random.Next(4) == 0 ? _specialMaxima[_random.Next(_specialMaxima.Length)] : state.Max[row];
            state.Sum[row] = _random.Next(4) == 0 ? _specialSums[_random.Next(_specialSums.Length)] : state.Sum[row];
            if (_random.Next(4) == 0)
            {
                state.Output.Slice(row * valueDim, valueDim).Clear();
                (state.Max[row], state.Sum[row]) = (float.NegativeInfinity, 0);
            }
        }

        return state;
    }

    public PartialAttention Copy(PartialAttention state)
    {
        PartialAttention copy = Empty();
        state.Region.AsSpan<byte>().CopyTo(copy.Region.AsSpan<byte>());
        return copy;
    }

    public void Dispose() => _memories.ForEach(memory => memory.Dispose());
}
