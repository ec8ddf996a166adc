using System;
using System.IO;
using System.Linq;
using TreeAttention.Testing.Processes;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Cli.Attend;

/// <summary><c>--dtype i8</c> with scales that are given or <c>auto</c>, from files to files.</summary>
public sealed class Int8Tests
{
    private static readonly AttentionShape _shape = new(2, 3, 37, 4, 2, 16, 24);

    [Theory]
    [InlineData("--ranks 2 --key-scale auto --value-scale auto")]
    [InlineData("--ranks 3 --shard zigzag --key-scale 0.04 --value-scale 0.05")]
    [InlineData("--ranks 2 --algorithm ring --key-scale auto --value-scale 0.05")]
    [InlineData("--ranks 3 --reproducible --key-scale key-scales.npy --value-scale auto")]
    [InlineData("--ranks 3 --algorithm gather --key-scale auto --value-scale auto")]
    public void Storage_in_eight_bits_verifies_on_any_plan(string arguments)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Save("key-scales.npy", "<f4", [0.04, 0.05], 2);
        string[] added = [.. arguments.Split(' ').Select(argument => argument.EndsWith(".npy", StringComparison.Ordinal) ? files.At(argument) : argument)];

        TreeattnResult result = AttendFilesTests.Attend(files, tensors, ["--dtype", "i8", "--verify", "--json", .. added]).Exits(0);

        Assert.Equal("i8", result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt32());
        files.AssertRight(_shape, new AttentionOptions(), bound: 0.1);
        Assert.ThrowsAny<Exception>(() => files.AssertRight(_shape, new AttentionOptions(), bound: 1e-5)); // it is rounded indeed
    }

    [Theory]
    [InlineData("i8")]
    [InlineData("f8e4m3")]
    public void Auto_is_the_same_for_any_number_of_ranks_and_layout_to_the_bit(string dtype)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        byte[]? first = null;
        foreach (string plan in new[] { "--ranks 1", "--ranks 2", "--ranks 5", "--ranks 3 --threads 2" })
        {
            AttendFilesTests.Attend(
                files, tensors, ["--dtype", dtype, "--key-scale", "auto", "--value-scale", "auto", "--reproducible", "--force", .. plan.Split(' ')]).Exits(0);
            byte[] output = File.ReadAllBytes(files.At("output.npy"));
            first ??= output;
            Assert.Equal(first, output);
        }

        // What auto finds, given by hand: the same numbers are stored.
        double most = dtype == "i8" ? 127 : 448;
        string keys = files.Save("key-scales.npy", "<f8", Largest(files.Read("key.npy", 2, 37, 2, 16), 16, most), 2);
        string values = files.Save("value-scales.npy", "<f8", Largest(files.Read("value.npy", 2, 37, 2, 24), 24, most), 2);
        AttendFilesTests.Attend(files, tensors, ["--dtype", dtype, "--key-scale", keys, "--value-scale", values, "--reproducible", "--force"]).Exits(0);
        Assert.Equal(first, File.ReadAllBytes(files.At("output.npy")));
    }

    [Fact]
    public void A_file_of_i8_is_multiplied_by_its_scales_exactly()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        double[] keys = SaveBytes(files, "key", 16, [0.0625, 0.03125]);
        double[] values = SaveBytes(files, "value", 24, [0.75, 0.125]);
        string keyScales = files.Save("key-scales.npy", "<f4", [0.0625, 0.03125], 2);
        string valueScales = files.Save("value-scales.npy", "<f4", [0.75, 0.125], 2);
        string[] stored = ["--key", files.At("key-i8.npy"), "--value", files.At("value-i8.npy")];

        TreeattnResult result = AttendFilesTests.Attend(
            files, [tensors[0], tensors[1], .. stored],
            ["--ranks", "2", "--key-scale", keyScales, "--value-scale", valueScales, "--verify", "--json"]).Exits(0);
        TreeattnResult decoded = TreeattnProcess.Run(
            ["decode", tensors[0], tensors[1], .. stored, "--key-scale", keyScales, "--value-scale", valueScales, "--ranks", "2", "--verify", "--json"]).Exits(0);
        AttendFilesTests.Attend(files, [tensors[0], tensors[1], .. stored], ["--key-scale", "auto"]).Exits(2).Says("key holds i8 elements");
        AttendFilesTests.Attend(files, [tensors[0], files.At("key-i8.npy"), .. stored], []).Exits(65).Says("query holds i8 elements");

        files.Save("key.npy", "<f4", keys, 2, 37, 2, 16);
        files.Save("value.npy", "<f4", values, 2, 37, 2, 24);
        Assert.Equal("i8", result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt32());
        Assert.Equal(0, decoded.Json.GetProperty("wrong").GetInt64());
        files.AssertRight(_shape, new AttentionOptions());
    }

    [Fact]
    public void Minus_128_in_a_file_is_named()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        byte[] data = new byte[2 * 37 * 2 * 16];
        data[16 + 5] = 128;
        File.WriteAllBytes(files.At("key-i8.npy"), TensorFileBytes.Npy("|i1", false, "(2, 37, 2, 16)", data));

        AttendFilesTests.Attend(files, [tensors[0], tensors[1], "--key", files.At("key-i8.npy"), tensors[4], tensors[5]], []).Exits(65)
            .Says("key[batch 0, position 0, head 1, dim 5] is NaN, which i8 has as -128");
    }

    [Fact]
    public void A_number_too_large_for_its_scale_is_named_and_auto_mends_it()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Poison("value.npy", 24 + 3, 1000f);

        AttendFilesTests.Attend(files, tensors, ["--dtype", "i8", "--ranks", "2", "--key-scale", "auto"]).Exits(65)
            .Says("value[batch 0, position 0, head 1, dim 3] is 1000, too large for i8 with a scale of 1, which ends at 127. Give a larger --value-scale");
        AttendFilesTests.Attend(files, tensors, ["--dtype", "i8", "--ranks", "2", "--key-scale", "auto", "--value-scale", "auto", "--verify"]).Exits(0);
    }

    [Fact]
    public void A_benchmark_checks_and_times_it()
    {
        TreeattnResult result = TreeattnProcess.Run(
            "bench -b 600 --heads 4 --kv-heads 2 --head-dim 32 --ranks 2 -n 1 -w 0 --dtype i8 --key-scale auto --value-scale auto --reduction butterfly --json".Split(' ')).Exits(0);

        Assert.Equal("i8", result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt32());
    }

    [Theory]
    [InlineData("--key-scale auto --value-scale auto --rotary 8 --causal --query-len 2 --context 500")]
    [InlineData("--algorithm single --key-scale 0.06 --value-scale 0.06")]
    [InlineData("--prefill chunked --chunk 200 --context 500 --steps 2 --key-scale 0.06 --value-scale 0.06")]
    public void Steps_over_a_cache_of_eight_bits_verify(string arguments)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(2, arguments.Contains("--prefill", StringComparison.Ordinal) ? 530 : 6, 530, 4, 2, 16, 24));
        foreach (int head in new[] { 0, 1 })
        {
            // The first token is the largest, in dimensions that are not rotated: what auto measures fits the steps.
            files.Poison("key.npy", (head * 16) + 9, 6f);
            files.Poison("value.npy", (head * 24) + 3, 6f);
        }

        TreeattnResult result = TreeattnProcess.Run(
            ["decode", .. tensors, "--dtype", "i8", "--ranks", "2", "--verify", "--json", .. arguments.Split(' ')]).Exits(0);

        Assert.Equal("i8", result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt64());
    }

    [Fact]
    public void Auto_measures_the_context_and_a_later_token_that_does_not_fit_is_refused()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 6, 100, 4, 2, 16, 24));
        files.Poison("value.npy", (97 * 2 * 24) + 3, 1000f);
        string[] decode = ["decode", .. tensors, "--dtype", "i8", "--ranks", "2", "--key-scale", "0.06", "--value-scale", "auto"];

        TreeattnProcess.Run([.. decode]).Exits(65).Says("value[batch 0, position 97, head 0, dim 3] is 1000, too large for i8", "Give a larger --value-scale");
        TreeattnProcess.Run([.. decode, "--context", "0", "--steps", "6"]).Exits(2).Says("measure the context, and there is none");
    }

    [Fact]
    public void Scales_belong_to_eight_bits()
    {
        using var files = new CliFiles();

        AttendFilesTests.Attend(files, files.Tensors(_shape), ["--key-scale", "auto"]).Exits(2).Says("stored as f32");
        TreeattnProcess.Run("bench -b 64 --dtype bf16 --key-scale auto".Split(' ')).Exits(2).Says("--dtype f8e4m3 or i8");
    }

    private static double[] Largest(float[] numbers, int dim, double most) =>
    [
        .. Enumerable.Range(0, 2).Select(head => numbers.Where((_, i) => i / dim % 2 == head).Max(MathF.Abs) / most).Select(scale => (double)(float)scale),
    ];

    // An .npy file of int8 elements; gives the numbers that they stand for.
    private static double[] SaveBytes(CliFiles files, string name, int dim, double[] scales)
    {
        sbyte[] data = [.. Enumerable.Range(0, 2 * 37 * 2 * dim).Select(i => (sbyte)((i * 37 % 255) - 127))];
        File.WriteAllBytes(
            files.At(name + "-i8.npy"), TensorFileBytes.Npy("|i1", false, $"(2, 37, 2, {dim})", System.Runtime.InteropServices.MemoryMarshal.AsBytes<sbyte>(data)));
        return [.. data.Select((element, i) => element * scales[i / dim % 2])];
    }
}
