using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Threading;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Cli;

/// <summary>Benchmarks, verification, the doctor, what is counted, and the end by a signal, on in-process ranks.</summary>
public sealed class RunTests
{
    private static readonly string[] _small = ["--heads", "4", "--kv-heads", "2", "--head-dim", "16", "-n", "2", "-w", "1"];

    [Fact]
    public void Bench_prints_comments_and_a_line_for_each_plan()
    {
        TreeattnResult result = TreeattnProcess.Run(["bench", "-b", "1K", "-e", "2K", "-f", "2", "--ranks", "2", .. _small]).Exits(0);

        string[] lines = result.Output.TrimEnd('\n').Split('\n');
        Assert.Contains(lines, line => line.StartsWith('#') && line.Contains("#wrong", StringComparison.Ordinal));
        Assert.Equal(24, lines.Count(line => !line.StartsWith('#'))); // 8 reductions, 3 rings and gather, over 1024 and 2048 keys
    }

    [Fact]
    public void Bench_writes_rows_and_never_over_others()
    {
        using var files = new CliFiles();
        string[] arguments = ["bench", "-b", "512", "--algorithm", "ring", "--ranks", "3", "--json", "--out", files.At("results"), .. _small];

        TreeattnResult result = TreeattnProcess.Run(arguments).Exits(0);
        string[] rows = File.ReadAllLines(files.At("results/results.jsonl"));
        TreeattnProcess.Run(arguments).Exits(73).Says("results.jsonl", "never overwritten");

        Assert.Equal(result.Output.TrimEnd('\n'), Assert.Single(rows));
        foreach (string key in (string[])["batch", "query_len", "context", "heads", "kv_heads", "head_dim", "nodes", "wrong"])
        {
            Assert.True(result.Json.TryGetProperty(key, out _), key);
        }

        Assert.Equal(rows, File.ReadAllLines(files.At("results/results.jsonl")));
    }

    [Theory]
    [InlineData("--combine", 9)]
    [InlineData("--query-len 0 --causal", 12)]
    [InlineData("--reduction butterfly", 1)]
    [InlineData("--algorithm ring-query --query-placement sharded --query-len 8 -c 0", 1)]
    public void Bench_runs_what_is_chosen(string chosen, int rows)
    {
        TreeattnResult result = TreeattnProcess.Run(["bench", "-b", "300", "--ranks", "2", "--json", .. _small, .. chosen.Split(' ')]).Exits(0);

        Assert.Equal(rows, result.JsonLines.Count);
    }

    [Fact]
    public void Verify_tries_every_plan_on_every_layout_and_gives_the_same_reproducible_bits_on_any_number_of_ranks()
    {
        string[] plans =
        [
            "ring", "ring (sharded)", "ring-no-overlap", "ring-no-overlap (sharded)", "ring-query", "ring-query (sharded)", "tree/all-to-all",
            "tree/allgather", "tree/butterfly", "tree/fused", "tree/one-shot", "tree/three-allreduce", "tree/two-allreduce", "tree/two-level",
        ];
        var bits = new HashSet<string?>();
        foreach (int ranks in (int[])[1, 3, 8]) // nightly more of them
        {
            TreeattnResult result = TreeattnProcess.Run("verify", "--ranks", $"{ranks}", "--json").Exits(0);

            string[] lines = result.Output.TrimEnd('\n').Split('\n');
            Assert.Matches(@"^[1-9]\d* passed, 0 failed$", lines[^2]);
            Assert.Equal(0, result.Json.GetProperty("failed").GetInt32());
            foreach (string plan in plans)
            {
                string line = Assert.Single(lines, line => line.StartsWith($"ok     {plan,-30} ", StringComparison.Ordinal));
                foreach (string layout in (string[])["contiguous", "zigzag", "striped", "cyclic", "lanes", "lengths"])
                {
                    Assert.Matches($@"\b{layout} [1-9]", line);
                }
            }

            bits.Add(result.Json.GetProperty("reproducible_bits").GetString());
        }

        Assert.Matches("^[0-9a-f]{16}$", Assert.Single(bits));
    }

    [Fact]
    public void Verify_counts_the_wrong_results_that_it_must_notice()
    {
        TreeattnResult result = TreeattnProcess.Run("verify", "--ranks", "3", "--cases", "1").Exits(0);

        foreach (string wrong in (string[])["a dropped shard", "swapped heads", "a base-2 lse", "zeros", "a causal off-by-one", "a row of NaN"])
        {
            Assert.Matches($@"(?m)^ok +notices {wrong} +5 of 5$", result.Output);
        }
    }

    [Fact]
    public void Verify_goes_through_its_cases_as_often_as_asked()
    {
        int Cases(params string[] asked)
        {
            TreeattnResult result = TreeattnProcess.Run(["verify", "--json", .. asked]).Exits(0);
            return result.Json.GetProperty("cases").GetInt32();
        }

        int all = Cases();

        Assert.Equal(7, Cases("--cases", "7"));
        Assert.Equal(all + 5, Cases("--cases", $"{all + 5}", "--seed", "1"));
    }

    [Fact]
    public void The_doctor_tells_what_is_there()
    {
        TreeattnResult result = TreeattnProcess.Run("doctor", "--json").Exits(0);

        Assert.True(result.Json.GetProperty("works").GetBoolean());
    }

    [Fact]
    public void Ceilings_are_measured_in_the_same_rounds()
    {
        TreeattnResult result = TreeattnProcess.Run(
            ["bench", "-b", "2K", "--query-len", "2", "--algorithm", "ring", "--ranks", "2", "--ceiling", "--json", .. _small]).Exits(0);

        foreach (string ratio in (string[])["read_ratio", "fma_ratio", "model_us"])
        {
            Assert.True(result.Json.GetProperty(ratio).GetDouble() > 0, ratio);
        }

        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt32());
    }

    [Fact]
    public void Bench_runs_over_tensors_from_files()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(2, 3, 101, 4, 2, 16, 24), "<f2");

        TreeattnResult result = TreeattnProcess.Run(["bench", .. tensors, "--ranks", "3", "--causal", "--json", "-n", "1", "-w", "0"]).Exits(0);

        Assert.Equal(12, result.JsonLines.Count);
        Assert.All(result.JsonLines, row => Assert.Equal(
            ("f16", 2, 3, 101, 0),
            (row.GetProperty("dtype").GetString(), row.GetProperty("batch").GetInt32(), row.GetProperty("query_len").GetInt32(),
                row.GetProperty("context").GetInt32(), row.GetProperty("wrong").GetInt32())));
    }

    [Theory]
    [InlineData("TERM", 143)]
    [InlineData("INT", 130)]
    public void A_signal_ends_a_run_at_once_and_leaves_nothing(string signal, int code)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 2, 400, 4, 2, 16, 16));

        using var process = TreeattnProcess.Start(
            ["attend", .. tensors, "--output", files.At("output.npy"), "--ranks", "2", "--repeat", "1000000", "--warmup", "1000000"]);
        int program = Assert.Single(process.Ranks(1));
        Thread.Sleep(1000); // into the runs; earlier the default action would end it as well
        ProcessTree.Signal(signal, program);

        process.Wait().Exits(code);
        Assert.Equal(3, files.Names.Length);
    }
}
