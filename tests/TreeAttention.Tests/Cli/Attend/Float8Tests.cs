using System;
using System.IO;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Processes;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Cli.Attend;

/// <summary><c>--dtype f8e4m3 --key-scale --value-scale</c>, from files to files.</summary>
public sealed class Float8Tests
{
    private static readonly AttentionShape _shape = new(2, 3, 37, 4, 2, 16, 24);

    [Theory]
    [InlineData("--ranks 2")]
    [InlineData("--ranks 3 --shard zigzag --key-scale 0.01 --value-scale 0.3")]
    [InlineData("--ranks 2 --algorithm ring --key-scale key-scales.npy --value-scale value-scales.npy")]
    [InlineData("--ranks 3 --reproducible --key-scale key-scales.npy")]
    [InlineData("--ranks 3 --algorithm gather --key-scale key-scales.npy --value-scale value-scales.npy")]
    [InlineData("--ranks 2 --algorithm gather --query-placement sharded --key-scale 0.01")]
    public void Storage_in_eight_bits_verifies_on_any_plan(string arguments)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Save("key-scales.npy", "<f4", [0.01, 0.5], 2);
        files.Save("value-scales.npy", "<f8", [1.5, 0.02], 2);
        string[] added = [.. arguments.Split(' ').Select(argument => argument.EndsWith(".npy", StringComparison.Ordinal) ? files.At(argument) : argument)];

        TreeattnResult result = AttendFilesTests.Attend(files, tensors, ["--dtype", "f8e4m3", "--verify", "--json", .. added]).Exits(0);

        Assert.Equal("f8e4m3", result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt32());
        files.AssertRight(_shape, new AttentionOptions(), bound: 0.3);
        Assert.ThrowsAny<Exception>(() => files.AssertRight(_shape, new AttentionOptions(), bound: 1e-4)); // it is rounded indeed
    }

    [Theory]
    [InlineData("--value-scale", "[0.75, 0.125]")]
    [InlineData("--value-from-key", "9")]
    public void A_file_of_f8e4m3_is_multiplied_by_its_scales_exactly(string option, string argument)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        double[] keys = SaveEncoded(files, "key", 16, [0.25, 0.5], 3);
        double[] values = SaveEncoded(files, "value", 24, [0.75, 0.125], 5);
        string keyScales = files.Save("key-scales.npy", "<f4", [0.25, 0.5], 2);
        string valueScales = files.Save("value-scales.npy", "<f4", [0.75, 0.125], 2);
        bool inside = option == "--value-from-key";
        string[] value = inside ? ["--value-from-key", argument] : ["--value", files.At("value.safetensors:t"), "--value-scale", valueScales];

        TreeattnResult result = AttendFilesTests.Attend(
            files, [tensors[0], tensors[1], "--key", files.At("key.safetensors:t"), .. value],
            ["--ranks", "2", "--key-scale", keyScales, "--verify", "--json"]).Exits(0);

        files.Save("key.npy", "<f4", keys, 2, 37, 2, 16);
        files.Save("value.npy", "<f4", values, 2, 37, 2, 24);
        Assert.Equal("f8e4m3", result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt32());
        files.AssertRight(
            _shape with { ValueDim = inside ? 9 : 24 }, new AttentionOptions(),
            value: inside ? files.Open("key.npy").TruncateLastAxis("value", 9) : null);
    }

    [Theory]
    [InlineData("--dtype bf16 --key-scale 2", "--dtype f8e4m3")]
    [InlineData("--value-scale 2", "stored as f32")]
    [InlineData("--dtype f8e4m3 --key-scale 0", "--key-scale")]
    [InlineData("--dtype f8e4m3 --key-scale -1", "--key-scale")]
    [InlineData("--dtype f8e4m3 --value-scale NaN", "--value-scale")]
    [InlineData("--dtype f8e4m3 --value-scale 1e39", "--value-scale")]
    public void Scales_that_cannot_be_are_refused_with_2(string addition, string named)
    {
        using var files = new CliFiles();

        TreeattnResult result = AttendFilesTests.Attend(files, files.Tensors(_shape), addition.Split(' ')).Exits(2);

        Assert.Contains(named, result.Errors, StringComparison.Ordinal);
        Assert.DoesNotContain("output.npy", files.Names);
    }

    [Fact]
    public void A_benchmark_and_values_inside_keys_refuse_scales_without_a_meaning()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);

        TreeattnProcess.Run("bench -b 64 --key-scale 2".Split(' ')).Exits(2).Says("--dtype f8e4m3");
        AttendFilesTests.Attend(files, tensors[..4], ["--value-from-key", "9", "--dtype", "f8e4m3", "--value-scale", "2"]).Exits(2).Says("--value-scale");
    }

    [Fact]
    public void Files_of_scales_must_fit_the_heads()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        string three = files.Save("three.npy", "<f4", [1, 1, 1], 3);
        string zero = files.Save("zero.npy", "<f4", [1, 0], 2);

        AttendFilesTests.Attend(files, tensors, ["--dtype", "f8e4m3", "--key-scale", three]).Exits(65).Says("[2]");
        AttendFilesTests.Attend(files, tensors, ["--dtype", "f8e4m3", "--value-scale", zero]).Exits(65).Says("element 1");
        AttendFilesTests.Attend(files, tensors, ["--dtype", "f8e4m3", "--value-scale", files.At("none.npy")]).Exits(66).Says("none.npy");
    }

    [Fact]
    public void A_number_too_large_for_its_scale_is_named_and_a_larger_scale_mends_it()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        files.Poison("value.npy", 24 + 3, 1000f);

        AttendFilesTests.Attend(files, tensors, ["--dtype", "f8e4m3", "--ranks", "2"]).Exits(65)
            .Says("value[batch 0, position 0, head 1, dim 3] is 1000, too large for f8e4m3 with a scale of 1, which ends at 448. Give a larger --value-scale");
        AttendFilesTests.Attend(files, tensors, ["--dtype", "f8e4m3", "--ranks", "2", "--value-scale", "2.5", "--verify"]).Exits(0);
    }

    [Fact]
    public void A_benchmark_checks_and_times_it()
    {
        TreeattnResult result = TreeattnProcess.Run(
            "bench -b 600 --heads 4 --kv-heads 2 --head-dim 32 --ranks 2 -n 1 -w 0 --dtype f8e4m3 --key-scale 0.01 --value-scale 0.005 --reduction butterfly --json".Split(' ')).Exits(0);

        Assert.Equal("f8e4m3", result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt32());
    }

    [Theory]
    [InlineData("--key-scale key-scales.npy --value-scale value-scales.npy --rotary 8 --causal --query-len 2")]
    [InlineData("--algorithm single --key-scale 0.01")]
    public void Steps_over_a_cache_of_eight_bits_verify(string arguments)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(2, 6, 530, 4, 2, 16, 24));
        files.Save("key-scales.npy", "<f4", [0.01, 0.5], 2);
        files.Save("value-scales.npy", "<f8", [1.5, 0.02], 2);
        string[] added = [.. arguments.Split(' ').Select(argument => argument.EndsWith(".npy", StringComparison.Ordinal) ? files.At(argument) : argument)];

        TreeattnResult result = TreeattnProcess.Run(
            ["decode", .. tensors, "--dtype", "f8e4m3", "--ranks", "2", "--verify", "--json", .. added]).Exits(0);

        Assert.Equal("f8e4m3", result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt64());
    }

    [Fact]
    public void Files_of_eight_bits_are_decoded_by_their_scales_and_synthetic_numbers_by_those_of_the_head_that_is_checked()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        SaveEncoded(files, "key", 16, [0.25, 0.5], 3);
        SaveEncoded(files, "value", 24, [0.75, 0.125], 5);
        string scales = files.Save("scales.npy", "<f4", [0.125, 0.009765625], 2);

        TreeattnResult stored = TreeattnProcess.Run(
            ["decode", tensors[0], tensors[1], "--key", files.At("key.safetensors:t"), "--value", files.At("value.safetensors:t"),
            "--key-scale", scales, "--value-scale", "3", "--ranks", "2", "--verify", "--json"]).Exits(0);
        TreeattnResult synthetic = TreeattnProcess.Run(
            ["decode", .. "--context 600 --steps 5 --heads 4 --kv-heads 2 --head-dim 32 --ranks 2 --threads 1 --dtype f8e4m3 --verify --json".Split(' '),
            "--key-scale", scales, "--value-scale", scales]).Exits(0);

        Assert.Equal("f8e4m3", stored.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, stored.Json.GetProperty("wrong").GetInt64());
        Assert.Equal(0, synthetic.Json.GetProperty("wrong").GetInt64());
        Assert.Equal(0, synthetic.Json.GetProperty("allocated_bytes").GetInt64());
    }

    [Fact]
    public void Decoding_refuses_scales_as_attend_does()
    {
        string[] sizes = "decode --context 600 --steps 2 --heads 4 --kv-heads 2 --head-dim 32 --ranks 2 --threads 1".Split(' ');

        TreeattnProcess.Run([.. sizes, "--key-scale", "2"]).Exits(2).Says("--dtype f8e4m3");
        TreeattnProcess.Run([.. sizes, "--dtype", "f8e4m3", "--value-scale", "0.001"]).Exits(65)
            .Says("too large for f8e4m3 with a scale of 0.00100000005, which ends at 0.448000021. Give a larger --value-scale");
    }

    // A safetensors file of f8e4m3 elements; gives the numbers that they stand for.
    private static double[] SaveEncoded(CliFiles files, string name, int dim, double[] scales, int step)
    {
        byte[] data = [.. Enumerable.Range(0, 2 * 37 * 2 * dim).Select(i => (byte)(i * step % 72 + (i % 7 == 0 ? 128 : 0)))];
        File.WriteAllBytes(files.At(name + ".safetensors"), TensorFileBytes.Safetensors(
            $"{{\"t\":{{\"dtype\":\"F8_E4M3\",\"shape\":[2,37,2,{dim}],\"data_offsets\":[0,{data.Length}]}}}}", data));
        return [.. data.Select((encoded, i) => ElementConversion.ToDouble([encoded], ElementType.Float8E4M3) * scales[i / dim % 2])];
    }
}
