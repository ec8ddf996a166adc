using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Processes;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Cli.Attend;

/// <summary><c>treeattn attend</c> from files to files: every option against float64.</summary>
public sealed class AttendFilesTests
{
    private static readonly AttentionShape _shape = new(2, 3, 37, 4, 2, 16, 24); // no size divides by the ranks

    private static readonly Dictionary<string, Func<CliFiles, (string[] Arguments, AttentionOptions Options)>> _semantics = new()
    {
        ["causal"] = _ => (["--causal"], new() { Causal = true }),
        ["window -1,-1"] = _ => (["--window", "-1,-1"], new()),
        ["window 3,0"] = _ => (["--window", "3,0"], new() { WindowLeft = 3, WindowRight = 0 }),
        ["window -1,2"] = _ => (["--window", "-1,2"], new() { WindowRight = 2 }),
        ["chunks"] = _ => (["--chunk-local", "10", "--lse-base", "e"], new() { LocalChunk = 10 }),
        ["chunks, window, lse to base 2"] = _ => (
            ["--chunk-local", "20", "--window", "9,-1", "--lse-base", "2"], new() { LocalChunk = 20, WindowLeft = 9, LseBase = LogarithmBase.Two }),
        ["negative scale"] = _ => (["--scale", "-0.5"], new() { Scale = -0.5 }),
        ["scale 0"] = _ => (["--scale", "0"], new() { Scale = 0 }),
        ["softcap"] = _ => (["--softcap", "1.5"], new() { Softcap = 1.5f }),
        ["alibi of heads"] = files => WithFloats(files, "--alibi", (options, values) => options with { AlibiSlopes = values }, 4),
        ["alibi of batch and heads"] = files => WithFloats(files, "--alibi", (options, values) => options with { AlibiSlopes = values }, 2, 4),
        ["sinks"] = files => WithFloats(files, "--sinks", (options, values) => options with { Sinks = values }, 4),
        ["key lengths"] = files => (
            ["--key-lengths", files.Save("kl.npy", "<i4", [11, 0], 2)], new() { KeyLengths = [11, 0] }),
        ["query lengths"] = files => (
            ["--query-lengths", files.Save("ql.npy", "<i8", [0, 2], 2)], new() { QueryLengths = [0, 2] }),
        ["left padding"] = files => (
            ["--leftpad", files.Save("lp.npy", "<i4", [11, 37], 2), "--causal"], new() { KeyStarts = [11, 37], Causal = true }),
        ["token tree by depth"] = files => (
            ["--tree-parents", files.Save("tree.npy", "<i4", [-1, 0, 0], 3), "--causal", "--window", "1,0"],
            TokenTreeMask.Apply(new() { Causal = true, WindowLeft = 1, WindowRight = 0 }, 2, 3, [TokenTree.FromParents([-1, 0, 0])])),
        ["token trees of ragged rows"] = files => (
            ["--tree-parents", files.Save("trees.npy", "<i8", [-1, 0, 9, -1, 0, 1], 2, 3), "--query-lengths", files.Save("ql.npy", "<i4", [2, 3], 2)],
            TokenTreeMask.Apply(new() { QueryLengths = [2, 3] }, 2, 3, [TokenTree.FromParents([-1, 0]), TokenTree.FromParents([-1, 0, 1])])),
        ["depth-first tree"] = DepthFirst,
        ["tail mask"] = files => TailMask(files, 5),
        ["tail mask longer than the keys"] = files => TailMask(files, 40),
        ["tail bias"] = files => TailBias(files, 2, 5),
        ["tail bias of all rows"] = files => TailBias(files, 1, 41),
    };

    public static TheoryData<string> Semantics => [.. _semantics.Keys];

    [Theory, MemberData(nameof(Semantics))]
    public void An_option_means_what_float64_says(string name)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        (string[] added, AttentionOptions options) = _semantics[name](files);

        Attend(files, tensors, ["--ranks", "3", .. added]).Exits(0);

        files.AssertRight(_shape, options);
    }

    [Theory]
    [InlineData("<f2", false)]
    [InlineData("<f4", true)]
    [InlineData("<f8", true)]
    public void Types_and_axis_orders_are_read_and_written(string descr, bool headMajor)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape, descr, headMajor);

        Attend(files, tensors, ["--ranks", "2", "--layout", headMajor ? "bhsd" : "bshd"]).Exits(0);

        files.AssertRight(_shape, new AttentionOptions(), headMajor);
    }

    [Fact]
    public void Bfloat16_is_read_from_safetensors()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        double[] numbers = [.. Enumerable.Range(0, 2 * 37 * 2 * 16).Select(i => Math.Sin(i))];
        byte[] data = [.. numbers.SelectMany(number => BitConverter.GetBytes((ushort)(BitConverter.SingleToUInt32Bits((float)number) >> 16)))];
        File.WriteAllBytes(files.At("key.safetensors"), TensorFileBytes.Safetensors(
            $"{{\"k\":{{\"dtype\":\"BF16\",\"shape\":[2,37,2,16],\"data_offsets\":[0,{data.Length}]}}}}", data));
        tensors[3] = files.At("key.safetensors:k");
        float[] widened = [.. Enumerable.Range(0, numbers.Length).Select(i => BitConverter.UInt32BitsToSingle((uint)BitConverter.ToUInt16(data, 2 * i) << 16))];

        TreeattnResult result = Attend(files, tensors, ["--dtype", "f32", "--json"]).Exits(0);

        files.Save("key.npy", "<f4", [.. widened.Select(value => (double)value)], 2, 37, 2, 16);
        Assert.Equal("f32", result.Json.GetProperty("dtype").GetString());
        files.AssertRight(_shape, new AttentionOptions());
    }

    [Theory]
    [InlineData("f16", 2e-3)]
    [InlineData("bf16", 2e-2)]
    public void Storage_in_fewer_bits_stays_near_and_verifies(string dtype, double bound)
    {
        using var files = new CliFiles();

        TreeattnResult result = Attend(files, files.Tensors(_shape), ["--dtype", dtype, "--verify", "--json"]).Exits(0);

        Assert.Equal(dtype, result.Json.GetProperty("dtype").GetString());
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt32());
        files.AssertRight(_shape, new AttentionOptions(), bound: 5 * bound);
    }

    [Fact]
    public void Values_are_the_first_elements_of_the_keys()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);

        Attend(files, tensors[..4], ["--ranks", "2", "--value-from-key", "9"]).Exits(0);

        files.AssertRight(_shape with { ValueDim = 9 }, new AttentionOptions(), value: files.Open("key.npy").TruncateLastAxis("value", 9));
    }

    [Theory]
    [InlineData("--shard zigzag")]
    [InlineData("--shard striped")]
    [InlineData("--shard cyclic:4")]
    [InlineData("--shard lanes")]
    [InlineData("--shard-lengths 10,0,27")]
    [InlineData("--reproducible")]
    [InlineData("--algorithm single")]
    [InlineData("--algorithm ring --shard zigzag")]
    [InlineData("--algorithm ring-no-overlap --shard-lengths 0,0,37")]
    [InlineData("--algorithm ring --query-placement sharded --shard zigzag")]
    [InlineData("--algorithm ring-query --query-placement sharded")]
    [InlineData("--algorithm gather --query-placement sharded --shard zigzag")]
    [InlineData("--algorithm gather --shard-lengths 10,0,27")]
    [InlineData("--reduction two-level --nodes 0,1,1")]
    public void Shards_and_plans_change_nothing(string plan)
    {
        using var files = new CliFiles();

        Attend(files, files.Tensors(_shape), ["--ranks", "3", "--causal", .. plan.Split(' ')]).Exits(0);

        files.AssertRight(_shape, new AttentionOptions { Causal = true });
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    public void More_ranks_than_keys_are_right(int keys)
    {
        AttentionShape shape = _shape with { KeyLength = keys };
        using var files = new CliFiles();

        Attend(files, files.Tensors(shape), ["--ranks", "5"]).Exits(0);

        files.AssertRight(shape, new AttentionOptions());
    }

    [Fact]
    public void The_comparison_of_these_tests_notices_another_option()
    {
        using var files = new CliFiles();
        Attend(files, files.Tensors(_shape), ["--causal"]).Exits(0);

        Assert.ThrowsAny<Exception>(() => files.AssertRight(_shape, new AttentionOptions { WindowRight = 1 }));
    }

    [Fact]
    public void Reproducible_bits_depend_on_neither_ranks_nor_threads()
    {
        AttentionShape shape = new(2, 2, 5000, 4, 2, 16, 16);
        using var files = new CliFiles();
        string[] tensors = files.Tensors(shape);
        var seen = new HashSet<string>();

        foreach ((int ranks, int threads) in ((int, int)[])[(1, 1), (1, 2), (2, 1), (3, 2), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1)])
        {
            Attend(files, tensors, ["--reproducible", "--force", "--ranks", $"{ranks}", "--threads", $"{threads}"]).Exits(0);
            seen.Add(Convert.ToHexString(File.ReadAllBytes(files.At("output.npy"))) + Convert.ToHexString(File.ReadAllBytes(files.At("lse.npy"))));
        }

        Assert.Single(seen);
        files.AssertRight(shape, new AttentionOptions());
    }

    internal static TreeattnResult Attend(CliFiles files, string[] tensors, string[] added) => TreeattnProcess.Run(
        ["attend", .. tensors, "--output", files.At("output.npy"), "--lse", files.At("lse.npy"), .. added]);

    private static (string[], AttentionOptions) WithFloats(
        CliFiles files, string option, Func<AttentionOptions, float[], AttentionOptions> with, params long[] shape)
    {
        float[] values = [.. Enumerable.Range(1, (int)shape.Aggregate((a, b) => a * b)).Select(i => 0.25f * i)];
        return ([option, files.Save("option.npy", "<f4", [.. values.Select(value => (double)value)], shape)], with(new(), values));
    }

    private static (string[], AttentionOptions) DepthFirst(CliFiles files)
    {
        int[] starts = [.. Enumerable.Range(0, 2 * 3).Select(i => i * 5 % 7)];
        int[] ends = [.. Enumerable.Range(0, 2 * 37).Select(i => i * 3 % 7)];
        string start = files.Save("start.npy", "<i4", [.. starts.Select(i => (double)i)], 2, 3);
        string end = files.Save("end.npy", "<i8", [.. ends.Select(i => (double)i)], 2, 37);
        return (["--dfs-start", start, "--dfs-end", end], new() { DfsStart = starts, DfsEnd = ends });
    }

    private static (string[], AttentionOptions) TailMask(CliFiles files, int tail)
    {
        bool[] mask = [.. Enumerable.Range(0, 2 * 3 * tail).Select(i => i % 3 != 1)];
        string file = files.Save("mask.npy", "|b1", [.. mask.Select(keep => keep ? 1.0 : 0)], 2, 3, tail);
        return (["--tail-mask", file], new() { TailMask = mask, TailMaskLength = tail });
    }

    private static (string[], AttentionOptions) TailBias(CliFiles files, int batch, int tail)
    {
        float[] bias = [.. Enumerable.Range(0, batch * 3 * tail).Select(i => i % 4 == 1 ? float.NegativeInfinity : (i % 5) - 2f)];
        string file = files.Save("bias.npy", "<f4", [.. bias.Select(value => (double)value)], batch, 3, tail);
        return (["--tail-bias", file], new() { TailBias = bias, TailBiasLength = tail });
    }
}
