using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>The Euclidean norm of each query row, read back from the device once for queries that do not change.</summary>
/// <remarks>
/// Whether fp32 is exact enough depends on the queries, which the host has not: it must read them, and wait for that. So the
/// norms are kept until something is written over the queries; every write of this device tells <see cref="Forget"/>.
/// </remarks>
internal sealed class QueryNorms(DeviceCopies copies)
{
    private const int MostKept = 64;
    private readonly Dictionary<(nint Address, long Bytes), double[]> _norms = [];
    private readonly List<(nint Address, long Bytes)> _overwritten = [];

    /// <summary>[rows] the norm of each query.</summary>
    internal double[] Of(Region queries, int headDim)
    {
        if (_norms.TryGetValue((queries.Address, queries.Bytes), out double[]? kept))
        {
            return kept;
        }

        if (_norms.Count >= MostKept)
        {
            _norms.Clear();
        }

        using var host = new HostMemory(queries.Bytes, ElementType.Float32);
        copies.Copy(queries, host.Region);
        double[] norms = new double[queries.Count / headDim];
        for (int row = 0; row < norms.Length; row++)
        {
            double squares = 0;
            foreach (float element in host.Region.Slice((long)row * headDim, headDim).AsSpan<float>())
            {
                squares += (double)element * element;
            }

            norms[row] = Math.Sqrt(squares);
        }

        _norms.Add((queries.Address, queries.Bytes), norms);
        return norms;
    }

    /// <summary>Something was, or will be, written to the region, or it was freed.</summary>
    internal void Forget(nint address, long bytes)
    {
        if (_norms.Count == 0)
        {
            return;
        }

        foreach ((nint Address, long Bytes) kept in _norms.Keys)
        {
            if (kept.Address < address + (nint)bytes && address < kept.Address + (nint)kept.Bytes)
            {
                _overwritten.Add(kept);
            }
        }

        foreach ((nint Address, long Bytes) kept in _overwritten)
        {
            _norms.Remove(kept);
        }

        _overwritten.Clear();
    }
}
