using System;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Runtime.Files;

/// <summary>Takes a run of elements of a tensor: their bytes, and the row-major index of the first.</summary>
internal delegate void ElementRun(ReadOnlySpan<byte> elements, long first);

/// <summary>Hands out a tensor's elements in row-major order, whatever its strides, in runs that lie one after the other.</summary>
internal static class RowMajorReader
{
    private const int LongestRun = 4096;

    /// <summary>Calls <paramref name="take"/> for every run; runs of a strided tensor are gathered first.</summary>
    public static void Read(TensorView view, ElementRun take)
    {
        if (view.Count == 0)
        {
            return;
        }

        // Trailing axes that lie without gaps are one long row.
        int outer = Math.Max(0, view.Rank - 1);
        long rowLength = view.Rank == 0 ? 1 : view.Shape[^1];
        while (outer > 0 && view.Strides[^1] == 1 && view.Strides[outer - 1] == rowLength)
        {
            rowLength *= view.Shape[--outer];
        }

        long step = view.Rank == 0 ? 1 : view.Strides[^1];
        long[] indices = new long[outer];
        var bytes = new TensorBytes(view);
        for (long first = 0; first < view.Count; first += rowLength)
        {
            ReadRow(view, bytes, view.OffsetOf(indices), step, rowLength, first, take);
            Advance(indices, view.Shape);
        }
    }

    private static void ReadRow(TensorView view, TensorBytes bytes, long offset, long step, long length, long first, ElementRun take)
    {
        int size = view.Type.SizeInBytes();
        Span<byte> gathered = stackalloc byte[LongestRun * sizeof(double)];
        for (long done = 0; done < length; done += LongestRun)
        {
            int count = (int)Math.Min(LongestRun, length - done);
            nint start = view.Address + (nint)((offset + (done * step)) * size);
            if (step == 1)
            {
                take(bytes.At(start, count * size), first + done);
                continue;
            }

            for (int i = 0; i < count; i++)
            {
                bytes.At(start + (nint)(i * step * size), size).CopyTo(gathered[(i * size)..]);
            }

            take(gathered[..(count * size)], first + done);
        }
    }

    private static void Advance(long[] indices, long[] shape)
    {
        for (int axis = indices.Length - 1; axis >= 0 && ++indices[axis] == shape[axis]; axis--)
        {
            indices[axis] = 0;
        }
    }
}

/// <summary>A digest of a tensor's elements, by which ranks notice that their files are not copies of one another.</summary>
/// <remarks>Small tensors count whole; of larger ones rows spread over all of it, so that a rank of a long context still reads little beside its own shard.</remarks>
internal static class TensorSample
{
    private const long WholeBytes = 1 << 20;
    private const int SampledRows = 64;

    /// <summary>The digest as text; it does not depend on strides.</summary>
    public static string DigestOf(TensorView view)
    {
        var fingerprint = new Fingerprint();
        if (view.Rank == 0 || view.Count * view.Type.SizeInBytes() <= WholeBytes)
        {
            RowMajorReader.Read(view, (elements, _) => fingerprint.Add(elements));
        }
        else
        {
            long rows = view.Count / view.Shape[^1];
            for (int i = 0; i < SampledRows; i++)
            {
                RowMajorReader.Read(RowOf(view, (long)((rows - 1) * (i / (double)(SampledRows - 1)))), (elements, _) => fingerprint.Add(elements));
            }
        }

        return Fingerprint.Shorten(fingerprint.Value());
    }

    private static TensorView RowOf(TensorView view, long row)
    {
        long[] indices = new long[view.Rank];
        for (int axis = view.Rank - 2; axis >= 0; axis--)
        {
            indices[axis] = row % view.Shape[axis];
            row /= view.Shape[axis];
        }

        nint first = view.Address + (nint)(view.OffsetOf(indices) * view.Type.SizeInBytes());
        return new TensorView(view.Name, first, view.Type, [view.Shape[^1]], [view.Strides[^1]]) { Source = view.Source };
    }
}
