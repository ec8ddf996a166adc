using System;
using System.Linq;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Testing.Partials;

/// <summary>States in host memory with made-up rows; every third row saw no key.</summary>
internal sealed class HostStates : IDisposable
{
    private readonly HostMemory[] _memory;

    internal HostStates(int count, int rows, int valueDim, int seed)
    {
        var random = new Random(seed);
        _memory = [.. Enumerable.Range(0, count).Select(_ => new HostMemory(PartialAttention.FloatsFor(rows, valueDim) * sizeof(float), ElementType.Float32))];
        States = [.. _memory.Select(memory => new PartialAttention(memory.Region, rows, valueDim))];
        for (int n = 0; n < count; n++)
        {
            PartialAttention state = States[n];
            state.Clear();
            for (int row = 0; row < rows; row++)
            {
                if ((row + n) % 3 == 2)
                {
                    continue;
                }

                state.Max[row] = (float)((random.NextDouble() * 8) - 4);
                state.Sum[row] = 1 + random.NextSingle();
                foreach (ref float value in state.Output.Slice(row * valueDim, valueDim))
                {
                    value = random.NextSingle() - 0.5f;
                }
            }
        }
    }

    internal PartialAttention[] States { get; }

    public void Dispose()
    {
        foreach (HostMemory memory in _memory)
        {
            memory.Dispose();
        }
    }
}
