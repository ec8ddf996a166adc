using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed.Numerics;

/// <summary>Everything that the library knows of one dtype: its size, its names, and how keys and values are stored as it.</summary>
/// <remarks>
/// A dtype is one entry of <see cref="All"/>. Where keys and values may be stored as it, the entry also says how numbers become
/// elements, which of them cannot, and what rounding does to them; kernels have the element's own twin: IStoredElement on CPUs,
/// device/primitives.cuh on GPUs.
/// </remarks>
internal sealed class StorageType
{
    private static readonly StorageType[] _all = [.. Entries().OrderBy(entry => entry.Type)];

    private StorageType(ElementType type, string name, int bits) => (Type, Name, BitsPerElement) = (type, name, bits);

    /// <summary>Elements as they lie in memory to single precision: exactly, or f64 rounded once.</summary>
    public delegate void Widening(ReadOnlySpan<byte> elements, Span<float> numbers);

    /// <summary>Single precision to the nearest elements, ties to even.</summary>
    public delegate void Narrowing(ReadOnlySpan<float> numbers, Span<byte> elements);

    /// <summary>The elements nearest to number / scale, rounded once; NaN where there is none.</summary>
    public delegate void Division<T>(ReadOnlySpan<T> numbers, float scale, Span<byte> elements);

    /// <summary>The value of the first element, exactly.</summary>
    public delegate double Reading(ReadOnlySpan<byte> element);

    /// <summary>Every dtype, by the number of its <see cref="ElementType"/>.</summary>
    public static IReadOnlyList<StorageType> All => _all;

    /// <summary>Those that keys and values may be stored as, the widest first.</summary>
    public static IReadOnlyList<StorageType> Stored { get; } = [.. _all.Where(entry => entry.IsStorage)];

    /// <summary>What it is.</summary>
    public ElementType Type { get; }

    /// <summary>The name on the command line, in messages and reports.</summary>
    public string Name { get; }

    /// <summary>Bits of one element. Elements lie without gaps; a run of them that is addressed begins and ends at whole bytes.</summary>
    public int BitsPerElement { get; }

    /// <summary>numpy's kind and size; null: .npy cannot say it, or it is not read.</summary>
    public string? NpyName { get; private init; }

    /// <summary>The name in safetensors files; null: it is not read.</summary>
    public string? SafetensorsName { get; private init; }

    /// <summary>A floating-point number.</summary>
    public bool IsFloatingPoint { get; private init; }

    /// <summary>Reads elements as numbers; null: they are none.</summary>
    public Widening? Widen { get; private init; }

    /// <summary>Writes numbers as elements; null: they are none.</summary>
    public Narrowing? Narrow { get; private init; }

    /// <summary>Reads one element exactly; null: it is no number.</summary>
    public Reading? Read { get; private init; }

    /// <summary>Keys and values may be stored as it: all that follows holds for those alone.</summary>
    public bool IsStorage { get; private init; }

    /// <summary>What the CUDA kernels call it; null: they have no such element.</summary>
    public string? KernelName { get; private init; }

    /// <summary>A number is the stored element × a scale of its KV head.</summary>
    public bool HasScales => Divide is not null;

    /// <summary>Stores numbers that are to be multiplied by a scale; null: it has no scales.</summary>
    public Division<float>? Divide { get; private init; }

    /// <summary>The same from double precision.</summary>
    public Division<double>? DivideExact { get; private init; }

    /// <summary>It has infinities.</summary>
    public bool HasInfinity { get; private init; } = true;

    /// <summary>What messages call a number that is none.</summary>
    public string NaNName { get; private init; } = "NaN";

    /// <summary>The largest element.</summary>
    public double Largest { get; private init; }

    /// <summary>The smallest magnitude, divided by the scale, that is too large: from here on rounding leaves the type.</summary>
    public double Overflow { get; private init; }

    /// <summary>Largest bound on |score| for which fp32 dot products are exact enough.</summary>
    public double ScoreLimit { get; private init; }

    /// <summary>Rounding moves a number by at most this share of it, …</summary>
    public double RelativeRoundoff { get; private init; }

    /// <summary>… or this share of the scale.</summary>
    public double AbsoluteRoundoff { get; private init; }

    /// <summary>A stored number is at most this much larger than it was, …</summary>
    public float Growth { get; private init; } = 1.01f;

    /// <summary>… and this share of the scale.</summary>
    public float GrowthOfScale { get; private init; }

    /// <summary>What a plain computation in this type rounds all but keys and values to.</summary>
    public ElementType Arithmetic { get; private init; }

    /// <summary>The entry of a dtype.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such dtype.</exception>
    public static StorageType Of(ElementType type) =>
        (uint)type < (uint)_all.Length ? _all[(int)type] : throw new ArgumentOutOfRangeException(nameof(type), type, "No such element type.");

    /// <summary>Names as a sentence lists them: <c>f32, f16 or bf16</c>.</summary>
    public static string Names(IEnumerable<StorageType> types, string conjunction) => List(types.Select(type => type.Name), conjunction);

    /// <summary>The names of those that keys and values may be stored as.</summary>
    public static string StoredNames(string conjunction) => Names(Stored, conjunction);

    /// <summary>The names of those that have scales.</summary>
    public static string ScaledNames(string conjunction) => Names(Stored.Where(type => type.HasScales), conjunction);

    /// <summary>The names of those that CUDA kernels have.</summary>
    public static string KernelNames(string conjunction) => Names(Stored.Where(type => type.KernelName is not null), conjunction);

    /// <summary>Words as a sentence lists them.</summary>
    public static string List(IEnumerable<string> words, string conjunction)
    {
        string[] all = [.. words];
        return all.Length < 2 ? string.Concat(all) : $"{string.Join(", ", all[..^1])} {conjunction} {all[^1]}";
    }

    /// <summary>Bytes of so many elements.</summary>
    public long BytesFor(long count) => ((count * BitsPerElement) + 7) / 8;

    /// <summary>Elements in so many bytes.</summary>
    public long CountIn(long bytes) => bytes * 8 / BitsPerElement;

    /// <summary>Stores numbers by a scale, which counts where the type has scales alone. What it cannot hold becomes NaN there.</summary>
    public void Store(ReadOnlySpan<float> numbers, float scale, Span<byte> elements)
    {
        if (Divide is null)
        {
            ElementConversion.FromFloat(numbers, Type, elements);
            return;
        }

        ElementConversion.RequireSameCount(elements.Length, Type, numbers.Length);
        Divide(numbers, scale, elements);
    }

    /// <summary>The finite number is too large to be stored. It is compared as it is stored, by the division that stores it.</summary>
    public bool Overflows(double number, float scale) => double.IsFinite(number) && Math.Abs(number) / (HasScales ? scale : 1f) >= Overflow;

    private static IEnumerable<StorageType> Entries() =>
    [
        new(ElementType.Byte, "u8", 8) { NpyName = "u1", SafetensorsName = "U8" },
        new(ElementType.Int16, "i16", 16) { NpyName = "i2", SafetensorsName = "I16" },
        new(ElementType.UInt16, "u16", 16) { NpyName = "u2", SafetensorsName = "U16" },
        new(ElementType.UInt32, "u32", 32) { NpyName = "u4", SafetensorsName = "U32" },
        new(ElementType.UInt64, "u64", 64) { NpyName = "u8", SafetensorsName = "U64" },
        new(ElementType.Boolean, "bool", 8) { NpyName = "b1", SafetensorsName = "BOOL" },
        new(ElementType.Int32, "i32", 32) { NpyName = "i4", SafetensorsName = "I32" },
        new(ElementType.Int64, "i64", 64) { NpyName = "i8", SafetensorsName = "I64" },
        new(ElementType.Float64, "f64", 64)
        {
            NpyName = "f8", SafetensorsName = "F64", IsFloatingPoint = true,
            Widen = ElementConversion.WidenFloat64, Narrow = ElementConversion.NarrowToFloat64, Read = ElementConversion.ReadFloat64,
        },
        new(ElementType.Float32, "f32", 32)
        {
            NpyName = "f4", SafetensorsName = "F32", IsFloatingPoint = true,
            Widen = ElementConversion.WidenFloat32, Narrow = ElementConversion.NarrowToFloat32, Read = ElementConversion.ReadFloat32,
            IsStorage = true, KernelName = "float", Arithmetic = ElementType.Float32,
            Largest = float.MaxValue,
            Overflow = Math.ScaleB(2 - Math.ScaleB(1, -24), 127), // half a unit above the largest: the tie goes to the even neighbour, ∞
            ScoreLimit = 48, // in chains of 32 rounding moves such a score by some 1e-6, and the output by less than 1e-5
        },
        new(ElementType.Float16, "f16", 16)
        {
            NpyName = "f2", SafetensorsName = "F16", IsFloatingPoint = true,
            Widen = ElementConversion.WidenFloat16, Narrow = ElementConversion.NarrowToFloat16, Read = ElementConversion.ReadFloat16,
            IsStorage = true, KernelName = "float16", Arithmetic = ElementType.Float16,
            Largest = (double)Half.MaxValue, Overflow = 65520, RelativeRoundoff = Math.ScaleB(1, -11),
            ScoreLimit = 2048, // storage has rounded such scores by 2048·2^-12 already; fp32 adds 2048·2^-24·√steps < 1e-3
        },
        new(ElementType.BFloat16, "bf16", 16)
        {
            SafetensorsName = "BF16", IsFloatingPoint = true,
            Widen = ElementConversion.WidenBFloat16, Narrow = ElementConversion.NarrowToBFloat16, Read = ElementConversion.ReadBFloat16,
            IsStorage = true, KernelName = "bfloat16", Arithmetic = ElementType.BFloat16,
            Largest = Math.ScaleB(2 - Math.ScaleB(1, -7), 127), Overflow = Math.ScaleB(2 - Math.ScaleB(1, -8), 127), RelativeRoundoff = Math.ScaleB(1, -8),
            ScoreLimit = 2048, // as f16, by 2048·2^-9
        },
        new(ElementType.Float8E4M3, "f8e4m3", 8)
        {
            SafetensorsName = "F8_E4M3", IsFloatingPoint = true,
            Widen = Float8E4M3.Widen, Narrow = Float8E4M3.Narrow, Read = Float8E4M3.Read,
            IsStorage = true, KernelName = "float8_e4m3", Arithmetic = ElementType.Float16,
            Divide = ElementConversion.Divide<Float8E4M3>, DivideExact = ElementConversion.DivideExact<Float8E4M3>, HasInfinity = false,
            Largest = Float8E4M3.Largest, Overflow = Math.BitIncrement(Float8E4M3.LargestRounded), RelativeRoundoff = Math.ScaleB(1, -4),
            Growth = 1.07f, GrowthOfScale = 1f / 1024, // at most 1 in 16, or half the smallest number
            ScoreLimit = 2048, // as f16, by 2048·2^-5
        },
        new(ElementType.Int8, "i8", 8)
        {
            NpyName = "i1", SafetensorsName = "I8",
            Widen = SymmetricInt8.Widen, Narrow = SymmetricInt8.Narrow, Read = SymmetricInt8.Read,
            IsStorage = true, KernelName = "int8", Arithmetic = ElementType.Float16,
            Divide = ElementConversion.Divide<SymmetricInt8>, DivideExact = ElementConversion.DivideExact<SymmetricInt8>, HasInfinity = false,
            NaNName = "NaN, which i8 has as -128",
            Largest = SymmetricInt8.Largest, Overflow = SymmetricInt8.Largest + 0.5, AbsoluteRoundoff = 0.5, GrowthOfScale = 0.5f,
            ScoreLimit = 2048, // as f16, by some 2048·2^-8
        },
    ];
}
