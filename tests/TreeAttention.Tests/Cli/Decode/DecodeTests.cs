using System;
using System.IO;
using System.Linq;
using System.Text.Json;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Cli.Decode;

/// <summary><c>treeattn decode</c> as users run it.</summary>
public sealed class DecodeTests
{
    private static readonly string[] _keys =
    [
        "algorithm", "reduction", "transport", "device", "dtype", "ranks", "median_us", "min_us", "p95_us", "compute_us", "communication_us", "bytes_sent",
        "control_bytes", "messages", "collectives", "peak_bytes", "error_max", "error_bound", "wrong", "batch", "query_len", "context", "final_context",
        "steps", "layers", "heads", "kv_heads", "head_dim", "value_dim", "tokens_per_s", "first_us", "last_us", "tenths_us", "cache_bytes",
        "allocated_bytes",
        "prefill", "chunk", "prefill_us", "prefill_tokens_per_s", "prefill_bytes_sent", "prefill_messages", "prefill_collectives",
    ];

    [Fact]
    public void Steps_over_files_write_what_one_causal_call_over_the_whole_writes()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(2, 6, 530, 4, 2, 16, 24));

        TreeattnProcess.Run(["attend", .. tensors, "--causal", "--reproducible", "--output", files.At("whole.npy"), "--lse", files.At("whole-lse.npy")]).Exits(0);
        TreeattnResult result = TreeattnProcess.Run(
            ["decode", .. tensors, "--causal", "--reproducible", "--query-len", "2", "--ranks", "3", "--output", files.At("steps.npy"),
            "--lse", files.At("steps-lse.npy"), "--verify", "--json"]).Exits(0);

        Assert.Equal(3, result.Json.GetProperty("steps").GetInt32());
        Assert.Equal(524, result.Json.GetProperty("context").GetInt32());
        float[] whole = files.Read("whole.npy", 2, 6, 4, 24);
        Assert.InRange(files.Read("steps.npy", 2, 6, 4, 24).Zip(whole).Max(pair => Math.Abs(pair.First - pair.Second)), 0, 1e-6f * whole.Max(MathF.Abs));
    }

    [Fact]
    public void A_synthetic_run_verifies_and_its_object_has_every_key()
    {
        TreeattnResult result = TreeattnProcess.Run(
            ["decode", "--context", "1000", "--steps", "30", "--batch", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "32", "--value-dim", "8", "--dtype", "f16",
            "--ranks", "2", "--threads", "1", "--rotary", "16", "--rotary-scaling", "8,1,4,512", "--window", "700,0", "--layers", "2", "--verify", "--json"]).Exits(0);

        Assert.Equal(_keys, result.Json.EnumerateObject().Select(member => member.Name));
        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt64());
        Assert.Equal(0, result.Json.GetProperty("allocated_bytes").GetInt64());
        Assert.Equal(1030, result.Json.GetProperty("final_context").GetInt32());
        Assert.Equal(10, result.Json.GetProperty("tenths_us").GetArrayLength());
        Assert.Equal(JsonValueKind.Number, result.Json.GetProperty("tokens_per_s").ValueKind);
    }

    [Theory]
    [InlineData("ring", 1, "--causal")]
    [InlineData("ring", 3, "--chunk-local 32 --lse-base 2")]
    [InlineData("gather", 3, "--causal")]
    [InlineData("chunked", 2, "--chunk-local 86")]
    public void A_prefilled_context_and_the_steps_behind_it_write_what_one_causal_call_writes(string method, int ranks, string mask)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(2, 90, 90, 4, 2, 16, 8));
        string[] chunk = method == "chunked" ? ["--chunk", "33"] : [];
        string[] masks = mask.Split(' ');

        TreeattnProcess.Run(["attend", .. tensors, .. masks, "--output", files.At("whole.npy"), "--lse", files.At("whole-lse.npy")]).Exits(0);
        TreeattnResult result = TreeattnProcess.Run(
            ["decode", .. tensors, "--context", "84", .. masks, "--query-len", "2", "--prefill", method, .. chunk, "--ranks", $"{ranks}", "--output",
            files.At("out.npy"), "--lse", files.At("lse.npy"), "--verify", "--json"]).Exits(0);

        Assert.Equal((84, 3), (result.Json.GetProperty("context").GetInt32(), result.Json.GetProperty("steps").GetInt32()));
        Assert.Equal(method, result.Json.GetProperty("prefill").GetString());
        Assert.True(result.Json.GetProperty("prefill_us").GetDouble() > 0 && result.Json.GetProperty("prefill_tokens_per_s").GetDouble() > 0);
        Assert.Equal(ranks > 1, result.Json.GetProperty("prefill_bytes_sent").GetInt64() > 0);
        AssertClose(files.Read("whole.npy", 2, 90, 4, 8), files.Read("out.npy", 2, 90, 4, 8));
        AssertClose(files.Read("whole-lse.npy", 2, 4, 90), files.Read("lse.npy", 2, 4, 90));
    }

    [Fact]
    public void A_reproducible_prefill_and_the_steps_behind_it_have_the_same_bits_on_any_ranks()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 1400, 1400, 2, 1, 8, 8));
        string[] outputs = [.. Enumerable.Range(1, 3).Select(ranks =>
        {
            string output = files.At($"{ranks}.npy");
            TreeattnProcess.Run(
                ["decode", .. tensors, "--steps", "2", "--reproducible", "--prefill", "chunked", "--chunk", "600", "--ranks", $"{ranks}", "--output", output]).Exits(0);
            return output;
        })];

        Assert.Equal(File.ReadAllBytes(outputs[0]), File.ReadAllBytes(outputs[1]));
        Assert.Equal(File.ReadAllBytes(outputs[0]), File.ReadAllBytes(outputs[2]));
        Assert.Equal(1400, files.Read("1.npy", 1, 1400, 2, 8).Length / 16);
    }

    [Fact]
    public void A_prefill_without_queries_for_the_context_says_what_is_missing()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 4, 9, 2, 1, 8, 8));

        TreeattnProcess.Run(["decode", .. tensors, "--context", "6", "--prefill", "ring"]).Exits(65).Says("7 queries", "--prefill needs the queries of the context");
    }

    [Theory]
    [InlineData("ring", "1", "f32")]
    [InlineData("ring", "3", "f8e4m3")]
    [InlineData("ring-no-overlap", "2", "bf16")]
    [InlineData("gather", "3", "f16")]
    public void Moving_the_keys_of_the_growing_cache_verifies(string algorithm, string ranks, string type)
    {
        TreeattnResult result = TreeattnProcess.Run(
            ["decode", "--context", "1020", "--steps", "8", "--batch", "2", "--query-len", "2", "--causal", "--rotary", "8", "--heads", "4", "--kv-heads", "2",
            "--head-dim", "16", "--value-dim", "8", "--layers", "2", "--dtype", type, "--algorithm", algorithm, "--ranks", ranks, "--threads", "1", "--verify", "--json"]).Exits(0);

        Assert.Equal(0, result.Json.GetProperty("wrong").GetInt64());
        Assert.Equal(algorithm, result.Json.GetProperty("algorithm").GetString());
        Assert.Equal(ranks == "1", result.Json.GetProperty("bytes_sent").GetInt64() == 0);
        Assert.Equal(JsonValueKind.Null, result.Json.GetProperty("reduction").ValueKind);
    }

    [Fact]
    public void A_ring_moves_values_that_lie_inside_keys_once()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 3, 1030, 2, 1, 8, 8));

        TreeattnResult result = TreeattnProcess.Run(
            ["decode", .. tensors[..4], "--value-from-key", "4", "--algorithm", "ring", "--ranks", "2", "--steps", "1", "--context", "1029", "--verify", "--json"]).Exits(0);

        // Rank 0 has pages 0 and 2, rank 1 page 1; each page has limits of 8 bytes.
        Assert.Equal(((512 + 6) * 8 * 4) + (2 * 8), result.Json.GetProperty("bytes_sent").GetInt64());
    }

    [Theory]
    [InlineData("--layers", "1000000")]
    [InlineData("--batch", "1000000", "--layers", "1000000", "--context", "1G", "--heads", "1", "--kv-heads", "1", "--head-dim", "1")]
    [InlineData("--layers", "1000000", "--cache-memory", "1G")]
    [InlineData("--cache-memory", "20M")]
    public void Sizes_that_no_memory_holds_end_at_once_with_71_and_one_line(params string[] sizes)
    {
        TreeattnResult result = TreeattnProcess.Run(["decode", .. sizes, "--steps", "1", "--ranks", "2", "--threads", "1"]).Exits(71);

        Assert.Single(result.Errors.TrimEnd().Split('\n'));
        Assert.Empty(result.Output);
    }

    [Fact]
    public void A_cache_takes_the_memory_that_is_available_and_no_more_than_it_can_fill()
    {
        TreeattnResult result = TreeattnProcess.Run(
            ["decode", "--context", "600", "--steps", "2", "--heads", "1", "--kv-heads", "1", "--head-dim", "8", "--cache-memory", "available", "--verify", "--json"]).Exits(0);

        Assert.Equal(2 * 2 * 512 * 8 * sizeof(float), result.Json.GetProperty("cache_bytes").GetInt64());
    }

    [Fact]
    public void An_empty_cache_grows_from_nothing_on_more_ranks_than_it_has_keys() => TreeattnProcess.Run(
        ["decode", "--context", "0", "--steps", "3", "--heads", "2", "--kv-heads", "1", "--head-dim", "8", "--ranks", "5", "--threads", "1", "--verify"]).Exits(0);

    [Theory]
    [InlineData("--algorithm=ring", "--reproducible")]
    [InlineData("--heads", "6")]
    [InlineData("--head-dim", "577")]
    [InlineData("--rotary", "15")]
    [InlineData("--rotary-base", "10")]
    [InlineData("--shard", "zigzag")]
    [InlineData("--reproducible", "--reduction=fused")]
    [InlineData("--prefill", "rings")]
    [InlineData("--reproducible", "--prefill=ring")]
    [InlineData("--algorithm=single", "--prefill=gather")]
    [InlineData("--chunk", "9")]
    public void A_command_line_that_contradicts_itself_is_2(string option, string value) =>
        TreeattnProcess.Run(["decode", "--context", "10", "--steps", "1", option, value]).Exits(2);

    [Fact]
    public void The_log_sum_exp_is_written_without_the_output_too()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 3, 9, 2, 1, 8, 8));

        TreeattnProcess.Run(["decode", .. tensors, "--lse", files.At("alone.npy"), "--ranks", "2"]).Exits(0);
        TreeattnProcess.Run(["decode", .. tensors, "--lse", files.At("both.npy"), "--output", files.At("out.npy"), "--ranks", "2"]).Exits(0);

        Assert.Equal(File.ReadAllBytes(files.At("both.npy")), File.ReadAllBytes(files.At("alone.npy")));
    }

    [Fact]
    public void Values_inside_keys_are_not_rotated_with_them()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 3, 9, 2, 1, 8, 8));

        TreeattnProcess.Run(["decode", .. tensors[..4], "--value-from-key", "4", "--rotary", "8"]).Exits(2).Says("--rotary", "--value-from-key");
        TreeattnProcess.Run(["decode", .. tensors[..4], "--value-from-key", "4", "--verify"]).Exits(0);
    }

    [Theory]
    [InlineData("--context 2047M --heads 64 --kv-heads 64", 71, "does not fit in the memory")]
    [InlineData("--context 8 --batch 1000000 --query-len 1000 --heads 1000 --kv-heads 1", 2, "1000000 × 1000 × 1000")]
    [InlineData("--context 8 --heads 2 --kv-heads 1 --head-dim 8 --rotary 16", 2, "Rotary dimension 16")]
    public void Sizes_that_cannot_be_are_faults_and_no_bugs(string arguments, int code, string said)
    {
        TreeattnResult result = TreeattnProcess.Run(["decode", "--steps", "1", "--ranks", "2", .. arguments.Split(' ')]).Exits(code).Says(said);

        Assert.Empty(result.Output);
        Assert.Single(result.Errors.TrimEnd().Split('\n'));
    }

    [Fact]
    public void Files_with_too_few_queries_for_a_step_say_so()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 4, 9, 2, 1, 8, 8));

        TreeattnProcess.Run(["decode", .. tensors, "--query-len", "5"]).Exits(65).Says("4 queries", "--query-len");
    }

    [Fact]
    public void Files_with_too_few_keys_are_65_and_nothing_is_written()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(new AttentionShape(1, 4, 9, 2, 1, 8, 8));

        TreeattnProcess.Run(["decode", .. tensors, "--context", "6", "--output", files.At("out.npy")]).Exits(65).Says("4 steps of 1 tokens behind 6 keys");

        Assert.False(File.Exists(files.At("out.npy")));
    }

    private static void AssertClose(float[] expected, float[] actual) =>
        Assert.InRange(expected.Zip(actual).Max(pair => Math.Abs(pair.First - pair.Second)), 0, 2e-6f * expected.Max(MathF.Abs));
}
