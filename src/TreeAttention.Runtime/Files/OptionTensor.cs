using System;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Runtime.Files;

/// <summary>Reads the small tensors that options name (masks, biases, lengths, slopes) into arrays, row-major.</summary>
internal static class OptionTensor
{
    /// <summary>Reads floating-point values of any floating-point type.</summary>
    /// <param name="spec">As <see cref="TensorFile.Open"/> takes it.</param>
    /// <param name="optionName">What messages call the tensor.</param>
    /// <exception cref="FaultException">As opening; or the type is not a floating-point type (65).</exception>
    public static (float[] Values, long[] Shape) Floats(string spec, string optionName) =>
        Read<float>(spec, optionName, StorageType.Names(StorageType.All.Where(type => type.IsFloatingPoint), "or"), ElementTypes.IsFloatingPoint, static (view, values) =>
            RowMajorReader.Read(view, (elements, first) =>
            {
                int count = elements.Length / view.Type.SizeInBytes();
                ElementConversion.ToFloat(elements, view.Type, values.AsSpan((int)first, count));
            }));

    /// <summary>Reads whole numbers of 32 or 64 bits that fit in 32.</summary>
    /// <param name="spec">As <see cref="TensorFile.Open"/> takes it.</param>
    /// <param name="optionName">What messages call the tensor.</param>
    /// <exception cref="FaultException">As opening; or the type is another, or a number needs more than 32 bits (65).</exception>
    public static (int[] Values, long[] Shape) Integers(string spec, string optionName) =>
        Read<int>(spec, optionName, "i32 or i64", type => type is ElementType.Int32 or ElementType.Int64, (view, values) =>
            RowMajorReader.Read(view, (elements, first) =>
            {
                if (view.Type == ElementType.Int32)
                {
                    elements.CopyTo(MemoryMarshal.AsBytes(values.AsSpan((int)first)));
                    return;
                }

                ReadOnlySpan<long> wide = MemoryMarshal.Cast<byte, long>(elements);
                for (int i = 0; i < wide.Length; i++)
                {
                    values[first + i] = (int)wide[i] == wide[i]
                        ? (int)wide[i]
                        : throw BadElement(spec, optionName, first + i, $"{wide[i]}", "numbers must fit in 32 bits");
                }
            }));

    /// <summary>Reads truth values.</summary>
    /// <param name="spec">As <see cref="TensorFile.Open"/> takes it.</param>
    /// <param name="optionName">What messages call the tensor.</param>
    /// <exception cref="FaultException">As opening; or the type is not bool, or a byte is neither 0 nor 1 (65).</exception>
    public static (bool[] Values, long[] Shape) Booleans(string spec, string optionName) =>
        Read<bool>(spec, optionName, "bool", type => type == ElementType.Boolean, (view, values) =>
            RowMajorReader.Read(view, (elements, first) =>
            {
                int bad = elements.IndexOfAnyExceptInRange((byte)0, (byte)1);
                if (bad >= 0)
                {
                    throw BadElement(spec, optionName, first + bad, $"the byte {elements[bad]}", "truth values are 0 or 1");
                }

                elements.CopyTo(MemoryMarshal.AsBytes(values.AsSpan((int)first)));
            }));

    private static (T[] Values, long[] Shape) Read<T>(
        string spec, string optionName, string wanted, Predicate<ElementType> isWanted, Action<TensorView, T[]> fill)
    {
        using var file = TensorFile.Open(spec, optionName);
        TensorView view = file.View;
        if (!isWanted(view.Type))
        {
            throw new FaultException(
                FaultCode.BadInput,
                $"{optionName} {spec} holds {view.Type.ShortName()}: it must hold {wanted}. Convert it with numpy's astype.");
        }

        if (view.Count > Array.MaxLength)
        {
            throw new FaultException(
                FaultCode.BadInput,
                $"{optionName} {spec} has shape {view.ShapeText}, {view.Count} elements: at most {Array.MaxLength} fit. Give a smaller one.");
        }

        T[] values = Allocate<T>(view.Count, optionName, spec);
        fill(view, values);
        return (values, view.Shape);
    }

    private static T[] Allocate<T>(long count, string optionName, string spec)
    {
        try
        {
            return new T[count];
        }
        catch (OutOfMemoryException error)
        {
            throw new FaultException(
                FaultCode.OutOfMemory, $"{optionName} {spec}: its {count} elements do not fit in memory. Give a smaller one.", error);
        }
    }

    private static FaultException BadElement(string spec, string optionName, long index, string value, string rule) =>
        new(FaultCode.BadInput, $"{optionName} {spec}: element {index} in row-major order is {value}; {rule}. Correct the file.");
}
