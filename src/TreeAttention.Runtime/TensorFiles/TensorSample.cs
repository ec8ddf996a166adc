using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>A digest of a tensor's elements, by which ranks notice that their files are not copies of one another.</summary>
/// <remarks>Small tensors count whole; of larger ones rows spread over all of it, so that a rank of a long context still reads little beside its own shard.</remarks>
public static class TensorSample
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
        return new TensorView(view.Name, first, view.Type, [view.Shape[^1]], [view.Strides[^1]]);
    }
}
