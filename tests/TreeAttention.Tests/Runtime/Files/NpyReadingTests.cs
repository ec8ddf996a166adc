using System;
using System.Linq;
using TreeAttention.Testing.Processes;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Runtime.Files;

public class NpyReadingTests : TensorFileTestBase
{
    private static readonly float[] _six = [1, 2, 3, 4, 5, 6];

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Every_version_of_the_format_is_read(byte major)
    {
        string path = Save(TensorFileBytes.Npy("<f4", false, "(2, 3)", TensorFileBytes.Floats(_six), major), "a.npy");

        using var file = TensorFile.Open(path, "query");

        Assert.Equal("query", file.View.Name);
        Assert.Equal(ElementType.Float32, file.View.Type);
        Assert.Equal([2, 3], file.View.Shape);
        Assert.Equal([3, 1], file.View.Strides);
        Assert.Equal(_six, Elements(file.View));
    }

    [Fact]
    public void Column_major_files_have_the_first_axis_running_fastest()
    {
        string path = Save(TensorFileBytes.Npy("<f4", true, "(2, 3)", TensorFileBytes.Floats(1, 4, 2, 5, 3, 6)), "a.npy");

        using var file = TensorFile.Open(path, "query");

        Assert.Equal([1, 2], file.View.Strides);
        Assert.Equal(_six, Elements(file.View));
    }

    [Theory]
    [InlineData("<f2", ElementType.Float16)]
    [InlineData("=f2", ElementType.Float16)]
    [InlineData("<f4", ElementType.Float32)]
    [InlineData("|f4", ElementType.Float32)]
    [InlineData("f4", ElementType.Float32)]
    [InlineData("<f8", ElementType.Float64)]
    [InlineData("|b1", ElementType.Boolean)]
    [InlineData("<i4", ElementType.Int32)]
    [InlineData("<i8", ElementType.Int64)]
    public void Every_type_that_is_read_has_its_element_type(string descr, ElementType type)
    {
        string path = Save(TensorFileBytes.Npy(descr, false, "(3,)", new byte[3 * type.SizeInBytes()]), "a.npy");

        using var file = TensorFile.Open(path, "query");

        Assert.Equal(type, file.View.Type);
        Assert.Equal([3], file.View.Shape);
    }

    [Theory]
    [InlineData(">f4", "big-endian")]
    [InlineData(">i8", "newbyteorder")]
    [InlineData("|O", "pickle")]
    [InlineData("<V2", "safetensors")]
    [InlineData("|V2", "bfloat16")]
    [InlineData("|V1", "float8")]
    [InlineData("<u16", ".astype('<i8')")]
    [InlineData("<c8", "'<c8'")]
    [InlineData("<U5", "'<U5'")]
    [InlineData("<f44", "'<f44'")]
    [InlineData("<<f4", "'<<f4'")]
    [InlineData("", "''")]
    public void Other_types_are_refused_by_name(string descr, string word) =>
        RefusedWith(Save(TensorFileBytes.Npy(descr, false, "(2,)", new byte[8]), "a.npy"), "'descr' at byte 20", word, At("a.npy"));

    [Theory]
    [InlineData("{'descr': [('a', '<f4'), ('b', '<i4')], 'fortran_order': False, 'shape': (1,), }", "structured")]
    [InlineData("{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (1,), }", "structured")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, }", "without 'shape'")]
    [InlineData("{'descr': '<f4', 'shape': (2,), }", "without 'fortran_order'")]
    [InlineData("{}", "without 'descr'")]
    [InlineData("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "'descr' for the second time")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", "'x'")]
    [InlineData("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}", "True or False")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", "0 or more")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,)}", "number in brackets")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (nan,)}", "0 or more")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2)}", "comma")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': 2}", "'(' is expected")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}", "below 2^63")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "2^63 bits")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807, 9)}", "2^63 bits")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807,)}", "2^63 bits")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1", "')' is expected")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x", "only blanks")]
    [InlineData("{'descr': '<f4", "closing quote")]
    [InlineData("{'de\\x73cr': '<f4'}", "backslash")]
    [InlineData("['descr']", "'{' is expected")]
    [InlineData("__import__('os')", "'{' is expected")]
    [InlineData("", "'{' is expected")]
    public void A_dictionary_that_is_not_numpys_is_refused(string dictionary, string word) =>
        RefusedWith(Save(TensorFileBytes.Npy(dictionary, new byte[8]), "a.npy"), word, "byte");

    [Theory]
    [InlineData("{'shape':(2,),'fortran_order':False,'descr':'<f4'}")]
    [InlineData("{ \"descr\" : \"<f4\", \"fortran_order\" : False , \"shape\" : ( 2 , ) , }   \n")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }")]
    [InlineData("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2,), }")]
    public void Any_order_quotes_and_blanks_that_Python_takes_are_taken(string dictionary)
    {
        string path = Save(TensorFileBytes.Npy(dictionary, TensorFileBytes.Floats(7, 8)), "a.npy");

        using var file = TensorFile.Open(path, "query");

        Assert.Equal([7, 8], Elements(file.View));
    }

    [Theory]
    [InlineData("()", 1)]
    [InlineData("(0,)", 0)]
    [InlineData("(3, 0, 5)", 0)]
    [InlineData("(1, 1, 1)", 1)]
    public void Tensors_of_no_axes_and_of_no_elements_are_fine(string shape, int elements)
    {
        string path = Save(TensorFileBytes.Npy("<f4", true, shape, new byte[elements * 4]), "a.npy");

        using var file = TensorFile.Open(path, "query");

        Assert.Equal(elements, file.View.Count);
        Assert.Equal(new float[elements], Elements(file.View));
    }

    [Theory]
    [InlineData(64, true)]
    [InlineData(65, false)]
    public void At_most_64_axes_are_read(int axes, bool isRead)
    {
        string shape = $"({string.Concat(Enumerable.Repeat("1, ", axes))})";
        string path = Save(TensorFileBytes.Npy("<f4", false, shape, new byte[4]), "a.npy");

        Assert.Equal(isRead, ReadsOrRefuses(path, 1000, $"{axes} axes"));
    }

    [Fact]
    public void Bytes_behind_the_tensor_are_refused()
    {
        string path = Save(TensorFileBytes.Npy("<f4", false, "(2,)", new byte[9]), "a.npy");

        RefusedWith(path, "nothing behind it", "numpy.save");
    }

    [Theory]
    [InlineData(4)]
    [InlineData(0)]
    [InlineData(99)]
    public void Unknown_versions_are_refused(byte major) =>
        RefusedWith(Save(TensorFileBytes.Npy("<f4", false, "(2,)", new byte[8], major), "a.npy"), "version", $"{major}.0");

    [Fact]
    public void A_header_that_declares_four_gigabytes_is_refused_at_once_and_without_memory()
    {
        byte[] bytes = [0x93, .. "NUMPY"u8, 2, 0, 0xF0, 0xFF, 0xFF, 0xFF];
        string path = Save(bytes, "a.npy");
        _ = Refused(path);

        long before = GC.GetAllocatedBytesForCurrentThread();
        FaultException fault = Refused(path);

        Assert.Contains("4294967292 bytes, the file has 12", fault.Message, StringComparison.Ordinal);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 64 * 1024);
    }

    [Fact]
    public void A_header_longer_than_64_KiB_is_refused_even_when_it_is_all_there()
    {
        string blanks = new(' ', 70_000);

        RefusedWith(
            Save(TensorFileBytes.Npy($"{{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }}{blanks}", new byte[8], 3), "a.npy"),
            "at most 65536 bytes");
    }

    [Fact]
    public void What_is_not_npy_is_told_apart()
    {
        RefusedWith(Save([.. "PK\u0003\u0004"u8, .. new byte[100]], "a.npy"), "unzip");
        RefusedWith(Save([.. "\u001b[31mred"u8, .. new byte[100]], "b.npy"), "NUMPY", "\\u001b");
        RefusedWith(Save([], "c.npy"), "truncated", "the file has 0");
    }

    [Fact]
    public void Every_cut_of_a_file_is_refused_and_only_the_whole_is_read()
    {
        byte[] whole = TensorFileBytes.Npy("<f4", false, "(2, 3)", TensorFileBytes.Floats(_six));

        for (int length = 0; length <= whole.Length; length++)
        {
            bool isRead = ReadsOrRefuses(Save(whole[..length], "a.npy"), length, $"cut at {length}");

            Assert.Equal(length == whole.Length, isRead);
        }
    }

    [Fact]
    public void A_truncated_payload_tells_the_bytes_declared_and_found()
    {
        byte[] whole = TensorFileBytes.Npy("<f8", false, "(1000,)", new byte[8000]);
        string path = Save(whole[..^1], "a.npy");

        RefusedWith(path, "truncated", $"{whole.Length} bytes", $"the file has {whole.Length - 1}", "(1000)");
    }

    [Fact]
    public void Every_flipped_bit_and_every_other_byte_of_a_header_is_read_safely_or_refused()
    {
        byte[] whole = TensorFileBytes.Npy("<f4", false, "(2, 3)", TensorFileBytes.Floats(_six));
        int header = whole.Length - (4 * _six.Length);
        int read = 0;

        for (int at = 0; at < header; at++)
        {
            byte right = whole[at];
            for (int other = 0; other < 256; other++)
            {
                whole[at] = (byte)other;
                read += ReadsOrRefuses(Overwrite(whole, "a.npy"), whole.Length, $"byte {at} set to {other}") ? 1 : 0;
            }

            whole[at] = right;
        }

        // Each byte's own value, and a few harmless ones: quotes stay pairs, a blank stays a blank, '<' becomes '='.
        Assert.InRange(read, header, 3 * header);
    }

    [Fact]
    public void Files_that_numpy_wrote_hold_what_numpy_read_back()
    {
        const string script = """
            import numpy, sys
            a = numpy.arange(24).reshape(2, 3, 4)
            for name, kind in (("f2", "<f2"), ("f4", "<f4"), ("f8", "<f8")):
                numpy.save(sys.argv[1] + "/c_" + name + ".npy", a.astype(kind))
                numpy.save(sys.argv[1] + "/f_" + name + ".npy", numpy.asfortranarray(a.astype(kind)))
            for v in ((1, 0), (2, 0), (3, 0)):
                with open(sys.argv[1] + "/v%d.npy" % v[0], "wb") as out:
                    numpy.lib.format.write_array(out, a.astype("<f4"), version=v)
            """;
        Numpy.Run(script, Folder);
        float[] expected = [.. Enumerable.Range(0, 24).Select(i => (float)i)];

        foreach (string name in (string[])["c_f2", "f_f2", "c_f4", "f_f4", "c_f8", "f_f8", "v1", "v2", "v3"])
        {
            using var file = TensorFile.Open(At(name + ".npy"), name);

            Assert.Equal([2, 3, 4], file.View.Shape);
            Assert.Equal(expected, Elements(file.View));
        }
    }
}
