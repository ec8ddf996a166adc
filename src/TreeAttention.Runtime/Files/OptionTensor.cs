using System;
using System.Buffers.Binary;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Runtime.Files;

/// <summary>Reads the small tensors that options name (masks, biases, lengths, slopes) into arrays, row-major.</summary>
internal static class OptionTensor
{
    private static readonly ElementType[] _integers =
    [
        ElementType.Int32, ElementType.Int64, ElementType.UInt32, ElementType.UInt64, ElementType.Int16, ElementType.UInt16, ElementType.Int8,
        ElementType.Byte,
    ];

    /// <summary>Reads floating-point values of any floating-point type.</summary>
    /// <param name="spec">As <see cref="TensorFile.Open"/> takes it.</param>
    /// <param name="optionName">What messages call the tensor.</param>
    /// <exception cref="FaultException">As opening; or the type is not a floating-point type (65).</exception>
    public static (float[] Values, long[] Shape) Floats(string spec, string optionName) =>
        Read<float>(spec, optionName, StorageType.Names(StorageType.All.Where(type => type.IsFloatingPoint), "or"), "'<f4'", ElementTypes.IsFloatingPoint, static (view, values) =>
            RowMajorReader.Read(view, (elements, first) =>
            {
                int count = elements.Length / view.Type.SizeInBytes();
                ElementConversion.ToFloat(elements, view.Type, values.AsSpan((int)first, count));
            }));

    /// <summary>Reads whole numbers of any integer type that fit in 32 bits.</summary>
    /// <param name="spec">As <see cref="TensorFile.Open"/> takes it.</param>
    /// <param name="optionName">What messages call the tensor.</param>
    /// <exception cref="FaultException">As opening; or the type is another, or a number needs more than 32 bits (65).</exception>
    public static (int[] Values, long[] Shape) Integers(string spec, string optionName) =>
        Read<int>(spec, optionName, StorageType.Names(_integers.Select(StorageType.Of), "or"), "'<i4'", type => _integers.Contains(type), (view, values) =>
            RowMajorReader.Read(view, (elements, first) =>
            {
                int size = view.Type.SizeInBytes();
                for (int i = 0; i < elements.Length / size; i++)
                {
                    Int128 number = IntegerAt(elements[(i * size)..], view.Type);
                    values[first + i] = number == (int)number
                        ? (int)number
                        : throw BadElement(spec, optionName, first + i, $"{number}", "numbers must fit in 32 bits");
                }
            }));

    /// <summary>Reads truth values.</summary>
    /// <param name="spec">As <see cref="TensorFile.Open"/> takes it.</param>
    /// <param name="optionName">What messages call the tensor.</param>
    /// <exception cref="FaultException">As opening; or the type is not bool, or a byte is neither 0 nor 1 (65).</exception>
    public static (bool[] Values, long[] Shape) Booleans(string spec, string optionName) =>
        Read<bool>(spec, optionName, "bool", "bool", type => type == ElementType.Boolean, (view, values) =>
            RowMajorReader.Read(view, (elements, first) =>
            {
                int bad = elements.IndexOfAnyExceptInRange((byte)0, (byte)1);
                if (bad >= 0)
                {
                    throw BadElement(spec, optionName, first + bad, $"the byte {elements[bad]}", "truth values are 0 or 1");
                }

                elements.CopyTo(MemoryMarshal.AsBytes(values.AsSpan((int)first)));
            }));

    private static Int128 IntegerAt(ReadOnlySpan<byte> element, ElementType type) => type switch
    {
        ElementType.Byte => element[0],
        ElementType.Int8 => (sbyte)element[0],
        ElementType.Int16 => BinaryPrimitives.ReadInt16LittleEndian(element),
        ElementType.UInt16 => BinaryPrimitives.ReadUInt16LittleEndian(element),
        ElementType.Int32 => BinaryPrimitives.ReadInt32LittleEndian(element),
        ElementType.UInt32 => BinaryPrimitives.ReadUInt32LittleEndian(element),
        ElementType.Int64 => BinaryPrimitives.ReadInt64LittleEndian(element),
        _ => BinaryPrimitives.ReadUInt64LittleEndian(element),
    };

    private static (T[] Values, long[] Shape) Read<T>(
        string spec, string optionName, string wanted, string numpyType, Predicate<ElementType> isWanted, Action<TensorView, T[]> fill)
    {
        using var file = TensorFile.Open(spec, optionName);
        TensorView view = file.View;
        if (!isWanted(view.Type))
        {
            throw new FaultException(
                FaultCode.BadInput,
                $"{optionName} {spec} holds {view.Type.ShortName()}: it must hold {wanted}. Save it with numpy's .astype({numpyType}).");
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
