using System;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Text;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Runtime.Files;

public class SafetensorsReadingTests : TensorFileTestBase
{
    private const string TwoTensors = """
        {"__metadata__":{"format":"pt","note":"\u0041"},
        "k":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},"layers.0:v":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}
        """;

    // 1 and -2 as bf16, then 3 and 4 as f32.
    private static readonly byte[] _twoTensorsData = [0x80, 0x3F, 0x00, 0xC0, .. TensorFileBytes.Floats(3, 4)];

    [Fact]
    public void A_named_tensor_is_found_among_others_that_lie_in_another_order()
    {
        string path = Save(TensorFileBytes.Safetensors(TwoTensors, _twoTensorsData), "m.safetensors");

        using var key = TensorFile.Open(path + ":k", "key");
        using var value = TensorFile.Open(path + ":layers.0:v", "value");

        Assert.Equal([2, 1], key.View.Shape);
        Assert.Equal([3, 4], Elements(key.View));
        Assert.Equal(ElementType.BFloat16, value.View.Type);
        Assert.Equal([1, -2], Elements(value.View));
    }

    [Fact]
    public void Without_a_name_the_only_tensor_is_taken_and_of_several_the_names_are_listed()
    {
        string one = Save(
            TensorFileBytes.Safetensors("""{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   """, TensorFileBytes.Floats(5)),
            "one.safetensors");
        string two = Save(TensorFileBytes.Safetensors(TwoTensors, _twoTensorsData), "two.safetensors");

        using var only = TensorFile.Open(one, "key");

        Assert.Equal([5], Elements(only.View));
        RefusedWith(two, "no tensor was named", "'k'", "'layers.0:v'");
        RefusedWith(two + ":q", "no tensor 'q'", "'k'", "'layers.0:v'");
        RefusedWith(two + ":", "no tensor ''");
        RefusedWith(Save(TensorFileBytes.Safetensors("{}", []), "none.safetensors"), "no tensor at all");
    }

    [Fact]
    public void A_path_may_hold_colons_and_look_like_a_tensor_itself()
    {
        string folder = Directory.CreateDirectory(At("a.safetensors:b")).FullName;
        byte[] bytes = TensorFileBytes.Safetensors(TwoTensors, _twoTensorsData);
        File.WriteAllBytes(Path.Join(folder, "c:d.safetensors"), bytes);
        File.WriteAllBytes(At("e.safetensors:f.npy"), TensorFileBytes.Npy("<f4", false, "()", TensorFileBytes.Floats(9)));

        using var key = TensorFile.Open(Path.Join(folder, "c:d.safetensors:k"), "key");
        using var nine = TensorFile.Open(At("e.safetensors:f.npy"), "key");

        Assert.Equal([3, 4], Elements(key.View));
        Assert.Equal([9], Elements(nine.View));
    }

    [Theory]
    [InlineData("F64", ElementType.Float64)]
    [InlineData("F32", ElementType.Float32)]
    [InlineData("F16", ElementType.Float16)]
    [InlineData("BF16", ElementType.BFloat16)]
    [InlineData("F8_E4M3", ElementType.Float8E4M3)]
    [InlineData("BOOL", ElementType.Boolean)]
    [InlineData("I32", ElementType.Int32)]
    [InlineData("I64", ElementType.Int64)]
    public void Every_type_that_is_read_has_its_element_type(string name, ElementType type)
    {
        int bytes = 3 * type.SizeInBytes();
        string path = Save(
            TensorFileBytes.Safetensors($$$"""{"t":{"dtype":"{{{name}}}","shape":[3,1],"data_offsets":[0,{{{bytes}}}]}}""", new byte[bytes]),
            "t.safetensors");

        using var file = TensorFile.Open(path, "key");

        Assert.Equal(type, file.View.Type);
        Assert.Equal(3, file.View.Count);
    }

    [Theory]
    [InlineData("F8_E5M2", 8)]
    [InlineData("F4", 4)]
    [InlineData("C64", 64)]
    public void Other_types_are_refused_by_name_but_may_stand_beside(string name, int bits)
    {
        int bytes = 4 * bits / 8;
        string json = $$$"""{"x":{"dtype":"{{{name}}}","shape":[4],"data_offsets":[0,{{{bytes}}}]},"b":{"dtype":"BOOL","shape":[1],"data_offsets":[{{{bytes}}},{{{bytes + 1}}}]}}""";
        string path = Save(TensorFileBytes.Safetensors(json, new byte[bytes + 1]), "t.safetensors");

        using var beside = TensorFile.Open(path + ":b", "key");

        Assert.Equal(1, beside.View.Count);
        RefusedWith(path + ":x", "'x'", name, "BF16");
    }

    [Theory]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}""", "overlap")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}""", "overlap")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}""", "no bytes between")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}""", "no tensor names")]
    [InlineData("""{}""", "no tensor names")]
    [InlineData("""{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}""", "truncated")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}""", "not before the begin")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}""", "must span exactly")]
    [InlineData("""{"a":{"dtype":"F4","shape":[15],"data_offsets":[0,8]}}""", "must span exactly")]
    [InlineData("""{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}""", "2^63")]
    [InlineData("""{"a":{"dtype":"F32","shape":[9223372036854775807,2,0],"data_offsets":[0,0]}}""", "2^63")]
    [InlineData("""{"a":{"dtype":"U8","shape":[1152921504606846975],"data_offsets":[0,1152921504606846975]}}""", "truncated")]
    [InlineData("""{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]}}""", "below 2^63")]
    [InlineData("""{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}""", "0 or more")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}""", "whole")]
    [InlineData("""{"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}}""", "whole")]
    [InlineData("""{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}""", "not JSON")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}""", "a begin and an end")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}}""", "more than 2")]
    [InlineData("""{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}""", "'F33'")]
    [InlineData("""{"a":{"dtype":4,"shape":[2],"data_offsets":[0,8]}}""", "a string")]
    [InlineData("""{"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}}""", "a list")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2]}}""", "without 'data_offsets'")]
    [InlineData("""{"a":{"shape":[2],"data_offsets":[0,8]}}""", "without 'dtype'")]
    [InlineData("""{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "'dtype' for the second time")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}""", "alone")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}}""", "'a' for the second time")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\u0061":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}}""", "'a' for the second time")]
    [InlineData("""{"__metadata__":{"x":"1","x":"2"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "'x' for the second time")]
    [InlineData("""{"__metadata__":{},"__metadata__":{},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "second time")]
    [InlineData("""{"__metadata__":{"x":1},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "strings only")]
    [InlineData("""{"__metadata__":[],"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "an object")]
    [InlineData("""{"\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "surrogate")]
    [InlineData("""{"a":{"\udc00":"F32","shape":[2],"data_offsets":[0,8]}}""", "surrogate")]
    [InlineData("""{"a":{"dtype":"F32","shape":[[[[[2]]]]],"data_offsets":[0,8]}}""", "whole")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} x""", "not JSON")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},}""", "not JSON")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}""", "not JSON")]
    [InlineData("""{"a":[]}""", "an object")]
    [InlineData(""" {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "begins with '{'")]
    [InlineData("""[1]""", "begins with '{'")]
    [InlineData("", "begins with '{'")]
    public void A_header_that_breaks_a_rule_is_refused(string json, string word) =>
        RefusedWith(Save(TensorFileBytes.Safetensors(json, new byte[8]), "m.safetensors") + ":a", word);

    [Fact]
    public void Text_that_is_not_UTF8_is_refused() =>
        RefusedWith(Save(TensorFileBytes.Safetensors(4, [(byte)'{', (byte)'"', 0xFF, (byte)'"'], []), "m.safetensors"), "UTF-8");

    [Theory]
    [InlineData(0x8000000000000000, "at most 100000000")]
    [InlineData(ulong.MaxValue, "at most 100000000")]
    [InlineData(100_000_001, "at most 100000000")]
    [InlineData(100_000_000, "truncated: the header length at byte 0 declares 100000008 bytes, the file has 24")]
    [InlineData(17, "declares 25 bytes")]
    public void A_header_longer_than_the_file_or_the_format_allows_is_refused_without_memory(ulong declared, string word)
    {
        string path = Save(TensorFileBytes.Safetensors(declared, new byte[16], []), "m.safetensors");
        RefusedWith(path, word);

        long before = GC.GetAllocatedBytesForCurrentThread();
        RefusedWith(path, word);

        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 64 * 1024);
    }

    [Fact]
    public void A_file_of_a_hundred_megabytes_with_an_empty_header_is_refused_at_its_first_letter()
    {
        string path = Save(TensorFileBytes.Safetensors(100_000_000, [], []), "m.safetensors");
        using (FileStream sparse = File.OpenWrite(path))
        {
            sparse.SetLength(100_000_008);
        }

        long began = Stopwatch.GetTimestamp();
        RefusedWith(path, "begins with '{'");

        Assert.InRange(Stopwatch.GetElapsedTime(began).TotalSeconds, 0, 1);
    }

    [Fact]
    public void Deep_nesting_is_refused_without_recursion()
    {
        string json = string.Concat(Enumerable.Repeat("{\"a\":", 200_000));

        RefusedWith(Save(TensorFileBytes.Safetensors(json, []), "m.safetensors"), "byte");
    }

    [Fact]
    public void Twenty_thousand_tensors_are_indexed_and_a_late_duplicate_is_found()
    {
        var json = new StringBuilder("{");
        for (int i = 0; i < 20_000; i++)
        {
            _ = json.Append(i == 0 ? "" : ",").Append($$"""{"dtype":"BOOL","shape":[1],"data_offsets":[{{i}},{{i + 1}}]}""".Insert(0, $"\"t{i}\":"));
        }

        string good = Save(TensorFileBytes.Safetensors(json + "}", new byte[20_000]), "good.safetensors");
        string twice = Save(
            TensorFileBytes.Safetensors(json + ""","t7":{"dtype":"BOOL","shape":[0],"data_offsets":[9,9]}}""", new byte[20_000]),
            "twice.safetensors");

        using var last = TensorFile.Open(good + ":t19999", "key");

        Assert.Equal(1, last.View.Count);
        RefusedWith(twice + ":t8", "'t7' for the second time");
        RefusedWith(good, "and 19988 more");
    }

    [Fact]
    public void Tensors_of_no_elements_lie_anywhere_between_the_others()
    {
        const string json = """{"z":{"dtype":"F32","shape":[0,7],"data_offsets":[8,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}""";
        string path = Save(TensorFileBytes.Safetensors(json, new byte[8]), "m.safetensors");

        using var last = TensorFile.Open(path + ":z", "key");
        using var first = TensorFile.Open(path + ":y", "key");

        Assert.Equal(0, last.View.Count);
        Assert.Equal(0, first.View.Count);
    }

    [Fact]
    public void Every_cut_of_a_file_is_refused_and_only_the_whole_is_read()
    {
        byte[] whole = TensorFileBytes.Safetensors(TwoTensors, _twoTensorsData);

        for (int length = 0; length <= whole.Length; length++)
        {
            string path = Overwrite(whole.AsSpan(0, length), "m.safetensors");

            Assert.Equal(length == whole.Length, ReadsOrRefuses(path + ":k", length, $"cut at {length}"));
        }
    }

    [Fact]
    public void Every_other_byte_in_a_header_is_read_safely_or_refused()
    {
        byte[] whole = TensorFileBytes.Safetensors(TwoTensors, _twoTensorsData);
        int header = whole.Length - _twoTensorsData.Length;
        int refused = 0;

        for (int at = 0; at < header; at++)
        {
            byte right = whole[at];
            for (int other = 0; other < 256; other++)
            {
                whole[at] = (byte)other;
                string path = Overwrite(whole, "m.safetensors");
                refused += ReadsOrRefuses(path + ":k", whole.Length, $"byte {at} set to {other}") ? 0 : 1;
            }

            whole[at] = right;
        }

        // Most changes break something; letters inside names and metadata do not.
        Assert.InRange(refused, header * 200, header * 254);
    }
}
