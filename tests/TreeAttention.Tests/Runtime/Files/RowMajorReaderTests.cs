using System;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Runtime.Files;
using Xunit;

namespace TreeAttention.Tests.Runtime.Files;

public class RowMajorReaderTests
{
    [Fact]
    public unsafe void Views_with_gaps_and_with_exchanged_axes_are_read_in_their_own_row_major_order()
    {
        float[] memory = [.. Enumerable.Range(0, 3 * 5 * 7).Select(i => (float)i)];
        fixed (float* first = memory)
        {
            var whole = new TensorView("t", (nint)first, ElementType.Float32, [3, 5, 7]);
            TensorView[] views = [whole, whole.TruncateLastAxis("v", 4), whole.SwapAxes(0, 1), whole.SwapAxes(1, 2), whole.SwapAxes(0, 2)];

            foreach (TensorView view in views)
            {
                Assert.Equal(OneByOne(view, memory), InRuns(view));
            }
        }
    }

    private static float[] InRuns(TensorView view)
    {
        float[] values = new float[view.Count];
        RowMajorReader.Read(view, (elements, first) =>
            ElementConversion.ToFloat(elements, view.Type, values.AsSpan((int)first, elements.Length / sizeof(float))));
        return values;
    }

    private static float[] OneByOne(TensorView view, float[] memory) =>
    [
        .. from a in Enumerable.Range(0, (int)view.Shape[0])
           from b in Enumerable.Range(0, (int)view.Shape[1])
           from c in Enumerable.Range(0, (int)view.Shape[2])
           select memory[view.OffsetOf([a, b, c])],
    ];
}
