using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using TreeAttention.Testing.Processes;
using TreeAttention.Tests.Cli.Attend;
using Xunit;

namespace TreeAttention.Tests.Cli;

/// <summary>Inputs and outputs that are wrong: the code, one clear line, and nothing lost.</summary>
public sealed class FileFaultTests
{
    private static readonly AttentionShape _shape = new(2, 3, 20, 4, 2, 8, 8);

    [Fact]
    public void A_missing_file_ends_with_66_and_its_name()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        File.Delete(files.At("value.npy"));

        AttendFilesTests.Attend(files, tensors, ["--ranks", "3"]).Exits(66).Says("value.npy");
    }

    [Fact]
    public void A_broken_header_ends_with_65()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        File.WriteAllBytes(files.At("key.npy"), [0x93, .. "NUMPY"u8, 1, 0, 0xFF, 0xFF]);

        AttendFilesTests.Attend(files, tensors, ["--ranks", "2"]).Exits(65).Says("key.npy");
    }

    [Theory]
    [InlineData("key", new long[] { 2, 20, 2, 9 }, "[2, 3, 4, 8]", "[2, 20, 2, 9]")]
    [InlineData("key", new long[] { 3, 20, 2, 8 }, "[2, 3, 4, 8]", "[3, 20, 2, 8]")]
    [InlineData("value", new long[] { 2, 21, 2, 8 }, "[2, 20, 2, 8]", "[2, 21, 2, 8]")]
    [InlineData("value", new long[] { 2, 20, 1, 8 }, "[2, 20, 2, 8]", "[2, 20, 1, 8]")]
    [InlineData("query", new long[] { 2, 3, 5, 8 }, "5 query heads", "2 KV heads")]
    [InlineData("key", new long[] { 20, 2, 8 }, "key", "[20, 2, 8]")]
    public void Shapes_that_disagree_are_both_named(string tensor, long[] shape, string first, string second)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Random(tensor + ".npy", "<f4", random => random.NextDouble(), shape);

        TreeattnResult result = AttendFilesTests.Attend(files, tensors, ["--ranks", "2"]).Exits(65);

        Assert.Contains(first, result.Errors, StringComparison.Ordinal);
        Assert.Contains(second, result.Errors, StringComparison.Ordinal);
        Assert.Single(result.Errors.TrimEnd('\n').Split('\n'));
    }

    [Fact]
    public void Integer_tensors_are_refused()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Random("key.npy", "<i4", random => random.Next(5), 2, 20, 2, 8);

        AttendFilesTests.Attend(files, tensors, []).Exits(65).Says("key holds", "i32");
    }

    [Theory]
    [InlineData("--alibi", "<f4", 5)]
    [InlineData("--sinks", "<i4", 4)]
    [InlineData("--key-lengths", "<f4", 2)]
    [InlineData("--key-lengths", "<i4", 3)]
    [InlineData("--tail-mask", "|b1", 6)]
    public void An_option_file_of_another_type_or_shape_ends_with_65(string option, string descr, int length)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        string file = files.Random("option.npy", descr, _ => 1, length);

        AttendFilesTests.Attend(files, tensors, ["--ranks", "2", option, file]).Exits(65).Says(option);
    }

    [Fact]
    public void Existing_output_is_refused_before_any_work_and_left_as_it_was()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        File.WriteAllText(files.At("lse.npy"), "mine");

        AttendFilesTests.Attend(files, tensors, ["--ranks", "2"]).Exits(73).Says("lse.npy", "--force");

        Assert.Equal("mine", File.ReadAllText(files.At("lse.npy")));
        Assert.Equal(4, files.Names.Length);
        AttendFilesTests.Attend(files, tensors, ["--force"]).Exits(0);
        files.AssertRight(_shape, new AttentionOptions());
    }

    [Theory]
    [InlineData("--output", "query.npy", "--query"), InlineData("--lse", "../{0}/value.npy", "--value"), InlineData("--lse", "output.npy", "--lse")]
    [InlineData("--lse", "", "empty")]
    public void An_output_that_would_replace_another_file_of_the_call_ends_with_2(string option, string file, string other)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        byte[] query = File.ReadAllBytes(files.At("query.npy"));
        string path = file.Length == 0 ? "" : files.At(file.Replace("{0}", Path.GetFileName(Path.GetDirectoryName(files.At("x"))!), StringComparison.Ordinal));
        string[] outputs = option == "--output" ? [option, path] : ["--output", files.At("output.npy"), option, path];

        TreeattnProcess.Run(["attend", .. tensors, .. outputs, "--ranks", "2", "--force"]).Exits(2).Says(other);

        Assert.Equal(query, File.ReadAllBytes(files.At("query.npy")));
        Assert.Equal(3, files.Names.Length);
    }

    [Theory]
    [InlineData("--leftpad"), InlineData("--cu-seqlens-q"), InlineData("--cu-seqlens-k"), InlineData("--tree-parents"), InlineData("--key-scale"), InlineData("--value-scale")]
    public void An_option_file_is_never_replaced_by_an_output(string option)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        string file = files.Random("option.npy", "<i4", _ => 1, 2);
        byte[] before = File.ReadAllBytes(file);
        string[] pair = option switch
        {
            "--cu-seqlens-q" => ["--cu-seqlens-k", "other.npy"],
            "--cu-seqlens-k" => ["--cu-seqlens-q", "other.npy"],
            "--key-scale" or "--value-scale" => ["--dtype", "f8e4m3"],
            _ => [],
        };

        TreeattnProcess.Run(["attend", .. tensors, option, file, .. pair, "--output", file, "--force"]).Exits(2).Says(option);

        Assert.Equal(before, File.ReadAllBytes(file));
    }

    [Theory, InlineData("--ranks 2"), InlineData("--causal --reproducible"), InlineData("--algorithm gather --ranks 3 --dtype f16")]
    public void Infinite_keys_that_are_let_through_agree_with_float64(string arguments)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Poison("key.npy", (17 * 2 * 8) + 3, float.PositiveInfinity);
        files.Poison("key.npy", (18 * 2 * 8) + 8, float.NegativeInfinity);

        AttendFilesTests.Attend(files, tensors, ["--nan", "propagate", "--verify", .. arguments.Split(' ')]).Exits(0);

        Assert.Contains(files.Read("output.npy", 2, 3, 4, 8), float.IsNaN);
        Assert.Contains(files.Read("output.npy", 2, 3, 4, 8), float.IsFinite);
    }

    [Fact]
    public void A_bad_token_tree_is_told_with_its_option_and_row()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        int queries = _shape.QueryLength;
        double[] roots = [.. Enumerable.Range(0, 2 * queries).Select(i => i < queries || i % queries == 0 ? (i % queries) - 1.0 : -1)];
        double[] cycle = [.. roots.Select((parent, i) => i == (2 * queries) - 1 ? queries - 1.0 : parent)];

        AttendFilesTests.Attend(files, tensors, ["--tree-parents", files.Save("roots.npy", "<i4", roots, 2, queries), "--verify"]).Exits(0);
        AttendFilesTests.Attend(files, tensors, ["--tree-parents", files.Save("cycle.npy", "<i4", cycle, 2, queries), "--force"])
            .Exits(65).Says("--tree-parents of batch row 1", "its own ancestor");
    }

    [Fact]
    public void Output_in_a_directory_that_is_not_there_ends_with_73()
    {
        using var files = new CliFiles();

        TreeattnProcess.Run(["attend", .. files.Tensors(_shape), "--output", files.At("no/output.npy")]).Exits(73).Says("no/output.npy");
    }

    [Fact]
    public void A_full_disk_ends_with_74_and_leaves_no_other_output()
    {
        using var files = new CliFiles();

        TreeattnProcess.Run(["attend", .. files.Tensors(_shape), "--output", files.At("output.npy"), "--lse", "/dev/full"]).Exits(74).Says("/dev/full");

        Assert.DoesNotContain("output.npy", files.Names);
    }

    [Theory]
    [InlineData("query", 191, "batch 1, position 2, head 3, dim 7")]
    [InlineData("key", 639, "batch 1, position 19, head 1, dim 7")]
    [InlineData("value", 0, "batch 0, position 0, head 0, dim 0")]
    public void A_NaN_ends_with_65_and_its_place(string tensor, int index, string place)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Poison(tensor + ".npy", index, float.NaN);

        TreeattnResult result = AttendFilesTests.Attend(files, tensors, ["--ranks", "3"]).Exits(65).Says(tensor);

        Assert.Contains(place, result.Errors.Replace("[", "", StringComparison.Ordinal), StringComparison.Ordinal);
        Assert.Equal(3, files.Names.Length);
    }

    [Fact]
    public void A_NaN_that_propagates_leaves_other_heads_as_they_were()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        AttendFilesTests.Attend(files, tensors, ["--ranks", "3"]).Exits(0);
        float[] clean = files.Read("output.npy", 2, 3, 4, 8);
        files.Poison("key.npy", 639, float.NaN); // batch 1, KV head 1: query heads 2 and 3

        AttendFilesTests.Attend(files, tensors, ["--ranks", "3", "--nan", "propagate", "--force"]).Exits(0);

        float[] touched = files.Read("output.npy", 2, 3, 4, 8);
        for (int i = 0; i < clean.Length; i++)
        {
            bool sees = i >= clean.Length / 2 && i / 8 % 4 >= 2;
            Assert.True(sees ? float.IsNaN(touched[i]) : touched[i].Equals(clean[i]), $"element {i}: {touched[i]}, was {clean[i]}");
        }
    }

    [Fact]
    public void The_last_line_of_json_has_every_key()
    {
        using var files = new CliFiles();

        TreeattnResult result = AttendFilesTests.Attend(files, files.Tensors(_shape), ["--ranks", "2", "--algorithm", "ring", "--json"]).Exits(0);

        IEnumerable<string> keys = result.Json.EnumerateObject().Select(member => member.Name);
        Assert.Equal(
            "algorithm reduction transport device dtype ranks median_us min_us p95_us compute_us communication_us bytes_sent control_bytes "
            + "messages collectives peak_bytes error_max error_bound wrong", string.Join(' ', keys));
        Assert.Equal(System.Text.Json.JsonValueKind.Null, result.Json.GetProperty("reduction").ValueKind);
        Assert.Equal(System.Text.Json.JsonValueKind.Null, result.Json.GetProperty("wrong").ValueKind);
        Assert.Empty(result.Errors);
    }

    [Fact]
    public void A_German_locale_changes_no_number()
    {
        using var files = new CliFiles();
        string[] arguments = ["attend", .. files.Tensors(_shape), "--output", files.At("output.npy"), "--scale", "0.25", "--verify", "--json"];

        using var process = TreeattnProcess.Start(arguments, ("LANG", "de_DE.UTF-8"), ("LC_ALL", "de_DE.UTF-8"));
        TreeattnResult result = process.Wait().Exits(0);

        Assert.DoesNotMatch(@"\d,\d", result.Output[..result.Output.IndexOf('{', StringComparison.Ordinal)]);
        Assert.True(result.Json.GetProperty("median_us").GetDouble() > 0);
    }
}
