using System;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Cache;

/// <summary>Scales that follow from the numbers: the largest magnitude of each KV head / the largest element of the storage type.</summary>
/// <remarks>
/// Each rank measures some of the tokens, each token somewhere. The largest of all is the same number however they are dealt, so
/// every rank has the same scales, in every layout and for any number of ranks. A head of zeros alone has a scale of 1.
/// </remarks>
/// <param name="options">Sizes and rotary embedding: keys are measured as they are stored, rotated. Numbers that are not finite do not count.</param>
internal sealed class ScaleMeter(CacheOptions options)
{
    private readonly RotaryAngles? _angles = options.Rotary is { Dim: > 0 } rotary ? new RotaryAngles(rotary) : null;
    private readonly float[] _keys = new float[options.KeyFloats];
    private readonly float[] _values = new float[options.ValueFloats];
    private readonly float[] _largest = new float[2 * options.KvHeads]; // of keys, then of values

    /// <summary>Measures this rank's even share of the first tokens of every row.</summary>
    /// <param name="source">The tokens.</param>
    /// <param name="tokens">Tokens of each row.</param>
    /// <param name="rank">0 to <paramref name="ranks"/> - 1.</param>
    /// <param name="ranks">Ranks that share the tokens.</param>
    /// <param name="present">The tokens that there are; all when null.</param>
    /// <exception cref="FaultException">A token cannot be read, or is not finite where that is an error.</exception>
    public void Measure(ITokenSource source, int tokens, int rank, int ranks, PresentTokens? present = null)
    {
        int first = (int)((long)tokens * rank / ranks);
        int end = (int)((long)tokens * (rank + 1) / ranks);
        for (int row = 0; row < options.Rows; row++)
        {
            for (int position = first; position < end; position++)
            {
                if (present?.HasKey(row, position) == false)
                {
                    continue;
                }

                source.Read(row, position, _keys, _values);
                if (!source.IsRotated)
                {
                    _angles?.Take([position]);
                }

                Take(_keys, options.HeadDim, _largest.AsSpan(0, options.KvHeads), source.IsRotated ? null : _angles);
                Take(_values, options.ValueDim, _largest.AsSpan(options.KvHeads), null);
            }
        }
    }

    /// <summary>The scales, from what all ranks measured. Every rank calls it.</summary>
    public KeyValueScales Agree(IControlPlane control, ElementType storage)
    {
        foreach (byte[] theirs in control.AllGather(MemoryMarshal.AsBytes<float>(_largest).ToArray()))
        {
            ReadOnlySpan<float> largest = MemoryMarshal.Cast<byte, float>(theirs);
            for (int i = 0; i < _largest.Length; i++)
            {
                _largest[i] = MathF.Max(_largest[i], largest[i]);
            }
        }

        float[] scales = Array.ConvertAll(_largest, largest => ScaleFor(largest, storage));
        return new KeyValueScales(scales[..options.KvHeads], options.ValuesInKeys ? scales[..options.KvHeads] : scales[options.KvHeads..]);
    }

    private static float ScaleFor(float largest, ElementType storage) => largest == 0
        ? 1
        : Math.Clamp((float)(largest / StorageType.Of(storage).Largest), KeyValueScales.Smallest, KeyValueScales.Largest);

    private static void Take(Span<float> numbers, int dim, Span<float> largest, RotaryAngles? angles)
    {
        for (int head = 0; head < numbers.Length / dim; head++)
        {
            Span<float> row = numbers.Slice(head * dim, dim);
            angles?.Turn(row, 0);
            foreach (float number in row)
            {
                float magnitude = MathF.Abs(number);
                largest[head] = float.IsFinite(magnitude) ? MathF.Max(largest[head], magnitude) : largest[head];
            }
        }
    }
}
