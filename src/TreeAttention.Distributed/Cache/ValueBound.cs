using System;
using System.Buffers.Binary;
using System.Numerics.Tensors;

namespace TreeAttention.Distributed;

/// <summary>How large the values of a cache are, over all ranks and layers: what sums of numerators need to know.</summary>
/// <param name="options">Storage type and scales.</param>
internal sealed class ValueBound(CacheOptions options)
{
    /// <summary>[1] the largest value so far, NaN where it is not known: every rank has the same. The array stays the same.</summary>
    public PageLimits[] Limits { get; } = [default];

    /// <summary>Values of tokens that every rank has seen were stored.</summary>
    public void Measure(ReadOnlySpan<float> values)
    {
        if (values.Length > 0)
        {
            // Storing may round up: f8e4m3 by at most 1 in 16 or half its smallest number, the others by less than 1 in 128.
            float largest = MathF.Abs(TensorPrimitives.MaxMagnitude(values));
            float scale = options.Scales is { } scales ? TensorPrimitives.Max<float>(scales.OfStorage(options.ValuesInKeys)) : 1f;
            Raise(options.Type == ElementType.Float8E4M3 ? (largest * 1.07f) + (scale / 1024) : largest * 1.01f);
        }
    }

    /// <summary>Stored values, known to every rank, are as large as this.</summary>
    public void Raise(float largest) => Limits[0] = new PageLimits(float.NaN, MathF.Max(Limits[0].LargestValue, largest));

    /// <summary>Values were stored that not every rank has seen.</summary>
    public void Forget() => Limits[0] = new PageLimits(float.NaN, float.NaN);

    /// <summary>Finds the largest of all ranks. Every rank calls it.</summary>
    /// <param name="control">The control plane of the ranks.</param>
    /// <param name="mine">The largest value that this rank stores.</param>
    public void Share(IControlPlane control, float mine)
    {
        byte[] bytes = new byte[sizeof(float)];
        BinaryPrimitives.WriteSingleLittleEndian(bytes, mine);
        foreach (byte[] theirs in control.AllGather(bytes))
        {
            mine = MathF.Max(mine, BinaryPrimitives.ReadSingleLittleEndian(theirs));
        }

        Limits[0] = new PageLimits(float.NaN, mine);
    }
}
