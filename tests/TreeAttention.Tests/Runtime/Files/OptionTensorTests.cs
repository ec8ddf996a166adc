using System;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Runtime.Files;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Runtime.Files;

public class OptionTensorTests : TensorFileTestBase
{
    [Theory]
    [InlineData(ElementType.Float64, "<f8")]
    [InlineData(ElementType.Float32, "<f4")]
    [InlineData(ElementType.Float16, "<f2")]
    public void Floats_of_any_width_and_either_order_come_row_major(ElementType type, string descr)
    {
        const int rows = 67, columns = 129; // no multiple of a vector, and more than one run when transposed
        float[] values = [.. Enumerable.Range(0, rows * columns).Select(i => (float)(i % 2048))];
        float[] transposed = [.. Enumerable.Range(0, rows * columns).Select(i => values[(i % rows * columns) + (i / rows)])];
        byte[] straight = new byte[values.Length * type.SizeInBytes()];
        byte[] turned = new byte[straight.Length];
        ElementConversion.FromFloat(values, type, straight);
        ElementConversion.FromFloat(transposed, type, turned);
        string c = Save(TensorFileBytes.Npy(descr, false, $"({rows}, {columns})", straight), "c.npy");
        string f = Save(TensorFileBytes.Npy(descr, true, $"({rows}, {columns})", turned), "f.npy");

        (float[] rowMajor, long[] shape) = OptionTensor.Floats(c, "--tail-bias");
        (float[] columnMajor, _) = OptionTensor.Floats(f, "--tail-bias");

        Assert.Equal([rows, columns], shape);
        Assert.Equal(values, rowMajor);
        Assert.Equal(values, columnMajor);
    }

    [Fact]
    public void A_long_strided_row_is_read_across_its_runs()
    {
        float[] values = [.. Enumerable.Range(0, 2 * 5000).Select(i => (float)i)];
        float[] turned = [.. Enumerable.Range(0, 2 * 5000).Select(i => values[(i % 2 * 5000) + (i / 2)])];
        string path = Save(TensorFileBytes.Npy("<f4", true, "(2, 5000)", TensorFileBytes.Floats(turned)), "f.npy");

        Assert.Equal(values, OptionTensor.Floats(path, "--tail-bias").Values);
    }

    [Fact]
    public void Integers_of_both_widths_are_read_and_those_beyond_32_bits_refused()
    {
        byte[] wide = [.. new long[] { int.MinValue, -1, int.MaxValue }.SelectMany(BitConverter.GetBytes)];
        byte[] wider = [.. new long[] { 0, 1L << 31 }.SelectMany(BitConverter.GetBytes)];
        byte[] narrow = [.. new[] { 5, -6 }.SelectMany(BitConverter.GetBytes)];
        string i8 = Save(TensorFileBytes.Npy("<i8", false, "(3,)", wide), "i8.npy");
        string big = Save(TensorFileBytes.Npy("<i8", false, "(2,)", wider), "big.npy");
        string i4 = Save(TensorFileBytes.Npy("<i4", true, "(2, 1)", narrow), "i4.npy");

        FaultException fault = Assert.Throws<FaultException>(() => OptionTensor.Integers(big, "--key-lengths"));

        Assert.Equal([int.MinValue, -1, int.MaxValue], OptionTensor.Integers(i8, "--key-lengths").Values);
        Assert.Equal([5, -6], OptionTensor.Integers(i4, "--key-lengths").Values);
        Assert.Equal(FaultCode.BadInput, fault.Code);
        Assert.Contains("element 1 in row-major order is 2147483648", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Truth_values_are_0_or_1_and_nothing_else()
    {
        string good = Save(TensorFileBytes.Npy("|b1", true, "(2, 2)", [1, 0, 0, 1]), "good.npy");
        string bad = Save(TensorFileBytes.Npy("|b1", false, "(3,)", [1, 0, 2]), "bad.npy");

        FaultException fault = Assert.Throws<FaultException>(() => OptionTensor.Booleans(bad, "--tail-mask"));

        Assert.Equal([true, false, false, true], OptionTensor.Booleans(good, "--tail-mask").Values);
        Assert.Contains("element 2 in row-major order is the byte 2", fault.Message, StringComparison.Ordinal);
        Assert.Equal(FaultCode.BadInput, fault.Code);
    }

    [Fact]
    public void A_tensor_of_another_type_is_refused_with_both_types()
    {
        string floats = Save(TensorFileBytes.Npy("<f4", false, "(1,)", new byte[4]), "f.npy");
        string integers = Save(TensorFileBytes.Npy("<i4", false, "(1,)", new byte[4]), "i.npy");

        FaultException[] faults =
        [
            Assert.Throws<FaultException>(() => OptionTensor.Integers(floats, "--key-lengths")),
            Assert.Throws<FaultException>(() => OptionTensor.Booleans(integers, "--tail-mask")),
            Assert.Throws<FaultException>(() => OptionTensor.Floats(integers, "--sinks")),
        ];

        Assert.All(faults, fault => Assert.Equal(FaultCode.BadInput, fault.Code));
        Assert.Contains("--key-lengths", faults[0].Message, StringComparison.Ordinal);
        Assert.Contains("holds f32: it must hold i32, i64, u32, u64, i16, u16, i8 or u8", faults[0].Message, StringComparison.Ordinal);
        Assert.Contains("holds i32: it must hold bool", faults[1].Message, StringComparison.Ordinal);
        Assert.Contains("f8e4m3", faults[2].Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Tensors_of_no_axes_and_of_no_elements_are_read()
    {
        string one = Save(TensorFileBytes.Npy("<f4", false, "()", TensorFileBytes.Floats(4)), "one.npy");
        string none = Save(TensorFileBytes.Npy("<f4", true, "(3, 0)", []), "none.npy");

        (float[] single, long[] noAxes) = OptionTensor.Floats(one, "--sinks");
        (float[] nothing, long[] empty) = OptionTensor.Floats(none, "--sinks");

        Assert.Equal([4], single);
        Assert.Empty(noAxes);
        Assert.Empty(nothing);
        Assert.Equal([3, 0], empty);
    }
}
