using System.Globalization;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention;

/// <summary>A tensor of the caller's in the memory of a rank's device: the address of its first element, how many there are, what they are.</summary>
/// <remarks>
/// Elements lie one behind the other, in the order that the call says. On a GPU the address is one of the device's primary context,
/// as cudaMalloc and PyTorch give it; on a CPU it is an address of the process. Nobody looks at the numbers: what is not finite
/// propagates. The memory must stay until the work is done: on a GPU, until the caller's stream is.
/// </remarks>
/// <param name="Address">The first element, aligned to its size.</param>
/// <param name="Count">Elements.</param>
/// <param name="Type">f32, f16 or bf16.</param>
public readonly record struct DeviceTensor(nint Address, long Count, ElementType Type = ElementType.Float32)
{
    /// <summary>A tensor of no elements.</summary>
    public static DeviceTensor Empty => new(0, 0);

    /// <summary>How many elements of which type lie where: <c>4096 bf16 at 0x7f3400000000</c>.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Count} {Type.ShortName()} at 0x{Address:x}");

    /// <summary>The memory.</summary>
    /// <exception cref="ShapeMismatchException">There is no such tensor.</exception>
    internal Region On(MemoryPlace place)
    {
        if (Count < 0 || (Count > 0 && Address == 0) || Type is not (ElementType.Float32 or ElementType.Float16 or ElementType.BFloat16))
        {
            throw new ShapeMismatchException(
                $"A device tensor of {Count} {Type.ShortName()} elements at address {Address:x}: give an address, a count, and f32, f16 or bf16.");
        }

        return new Region(Address, Type.BytesFor(Count), Type, place);
    }
}
