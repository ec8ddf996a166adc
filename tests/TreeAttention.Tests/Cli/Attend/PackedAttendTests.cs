using System;
using System.Linq;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Cli.Attend;

/// <summary><c>treeattn attend</c> over packed sequences: cu_seqlens of flash-attn's varlen functions.</summary>
public sealed class PackedAttendTests
{
    private static readonly AttentionShape _shape = new(1, 9, 41, 4, 2, 16, 24);
    private static readonly int[] _queries = [0, 3, 3, 8, 9];
    private static readonly int[] _keys = [0, 20, 31, 31, 41];

    [Theory]
    [InlineData("--ranks 1")]
    [InlineData("--ranks 3 --shard zigzag")]
    [InlineData("--ranks 3 --reproducible")]
    [InlineData("--ranks 3 --algorithm ring --query-placement sharded --shard striped")]
    [InlineData("--ranks 2 --algorithm gather --query-placement sharded")]
    public void Packed_sequences_come_and_leave_without_a_batch_axis(string plan)
    {
        using var files = new CliFiles();
        string[] tensors = Tensors(files, withBatchAxis: false);
        string slopes = files.Save("slopes.npy", "<f4", [.. Enumerable.Range(1, 16).Select(i => 0.05 * i)], 4, 4);

        AttendFilesTests.Attend(
            files, tensors, [.. Bounds(files, "<i4"), "--causal", "--alibi", slopes, "--verify", .. plan.Split(' ')]).Exits(0);

        Restore(files, _shape.QueryLength, _shape.QueryHeads, _shape.ValueDim);
        files.AssertRight(_shape, new AttentionOptions
        {
            PackedQueries = _queries,
            PackedKeys = _keys,
            Causal = true,
            AlibiSlopes = [.. Enumerable.Range(1, 16).Select(i => (float)(0.05 * i))],
        });
    }

    [Fact]
    public void One_batch_row_and_depth_first_order_of_each_sequence_are_taken_too()
    {
        using var files = new CliFiles();
        int[] start = [.. Enumerable.Range(0, 9).Select(i => i % 3)];
        int[] end = [.. Enumerable.Range(0, 41).Select(j => j * 5 % 4)];

        AttendFilesTests.Attend(files, Tensors(files, withBatchAxis: true),
        [
            .. Bounds(files, "<i8"), "--ranks", "2", "--dfs-start", files.Save("start.npy", "<i4", [.. start.Select(i => (double)i)], 9),
            "--dfs-end", files.Save("end.npy", "<i4", [.. end.Select(i => (double)i)], 41),
        ]).Exits(0);

        Restore(files, 1, _shape.QueryLength, _shape.QueryHeads, _shape.ValueDim);
        files.AssertRight(_shape, new AttentionOptions { PackedQueries = _queries, PackedKeys = _keys, DfsStart = start, DfsEnd = end });
    }

    [Theory]
    [InlineData("0,3,2,9", "0,20,31,41", "must not descend")]
    [InlineData("0,3,9", "0,20,42", "ends with 42")]
    [InlineData("0,3,9", "0,41", "both must name the same")]
    [InlineData("1,9", "0,41", "must begin with 0")]
    public void Bounds_that_are_no_sequences_are_bad_input(string queries, string keys, string message)
    {
        using var files = new CliFiles();

        TreeattnResult result = AttendFilesTests.Attend(
            files, Tensors(files, withBatchAxis: false), ["--cu-seqlens-q", Save(files, "cq.npy", queries), "--cu-seqlens-k", Save(files, "ck.npy", keys)]);

        result.Exits(65);
        Assert.Contains(message, result.Errors, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("--cu-seqlens-q a.npy")]
    [InlineData("--cu-seqlens-k a.npy")]
    [InlineData("--cu-seqlens-q a.npy --cu-seqlens-k a.npy --key-lengths a.npy")]
    [InlineData("--cu-seqlens-q a.npy --cu-seqlens-k a.npy --leftpad a.npy")]
    [InlineData("--cu-seqlens-q a.npy --cu-seqlens-k a.npy --tree-parents a.npy")]
    [InlineData("--tree-parents a.npy --tail-mask a.npy")]
    [InlineData("--tree-parents a.npy --dfs-start a.npy --dfs-end a.npy")]
    public void Options_that_contradict_each_other_are_a_bad_command_line(string options)
    {
        using var files = new CliFiles();

        AttendFilesTests.Attend(files, Tensors(files, withBatchAxis: true), options.Split(' ')).Exits(2);
    }

    [Fact]
    public void Three_axes_without_bounds_and_trees_that_are_none_are_bad_input()
    {
        using var files = new CliFiles();
        string[] tensors = Tensors(files, withBatchAxis: false);

        AttendFilesTests.Attend(files, tensors, []).Exits(65);
        AttendFilesTests.Attend(
            files, Tensors(files, withBatchAxis: true), ["--tree-parents", Save(files, "tree.npy", "-1,0,0,3,0,0,0,0,0")]).Exits(65);
    }

    private static string[] Tensors(CliFiles files, bool withBatchAxis)
    {
        string[] tensors = files.Tensors(_shape);
        for (int i = 1; i < tensors.Length && !withBatchAxis; i += 2)
        {
            string name = tensors[i - 1][2..];
            TensorView view = files.Open($"{name}.npy");
            double[] values = [.. files.Read($"{name}.npy", view.Shape).Select(value => (double)value)];
            tensors[i] = files.Save($"{name}-packed.npy", "<f4", values, view.Shape[1..]);
        }

        return tensors;
    }

    private static string[] Bounds(CliFiles files, string descr) =>
    [
        "--cu-seqlens-q", files.Save("cq.npy", descr, [.. _queries.Select(i => (double)i)], 5),
        "--cu-seqlens-k", files.Save("ck.npy", descr, [.. _keys.Select(i => (double)i)], 5),
    ];

    private static string Save(CliFiles files, string name, string numbers)
    {
        double[] values = [.. numbers.Split(',').Select(double.Parse)];
        return files.Save(name, "<i4", values, values.Length);
    }

    // What was written, asserted to have these axes, with all four for the comparison.
    private static void Restore(CliFiles files, params long[] outputShape)
    {
        double[] output = [.. files.Read("output.npy", outputShape).Select(value => (double)value)];
        double[] lse = [.. files.Read("lse.npy", _shape.QueryHeads, _shape.QueryLength).Select(value => (double)value)];
        files.Save("output.npy", "<f4", output, 1, _shape.QueryLength, _shape.QueryHeads, _shape.ValueDim);
        files.Save("lse.npy", "<f4", lse, 1, _shape.QueryHeads, _shape.QueryLength);
    }
}
