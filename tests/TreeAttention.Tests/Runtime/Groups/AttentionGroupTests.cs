using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>The library's face: join, cache, decode, leave.</summary>
public sealed class AttentionGroupTests
{
    private static readonly GroupOptions _options = new() { Device = DeviceKind.Cpu, Threads = 1 };

    [Theory, InlineData(1), InlineData(3)]
    public void In_process_ranks_decode_over_one_cache(int ranks)
    {
        var decode = new DecodeCase("library") { Options = new AttentionOptions { Causal = true }, NewTokens = 2, QueryLength = 2 };

        RunAll(AttentionGroup.JoinInProcess(ranks, _options), group =>
        {
            using ShardedKvCache cache = group.CreateCache(decode.CacheOptions);
            decode.Fill(cache, 200);
            using DecodeStep step = group.CreateStep(cache, decode.DecodeOptions());
            float[] output = new float[decode.Rows * 2 * decode.QueryHeads * decode.ValueDim];
            float[] lse = new float[decode.Rows * decode.QueryHeads * 2];
            (float[] key, float[] value) = decode.LastTokens();

            group.Decode(step, 0, decode.Query, key, value, output, lse, TestContext.Current.CancellationToken);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
            Assert.Equal(ranks, group.Size);
        });
    }

    [Theory, InlineData(1), InlineData(3)]
    public void A_tree_of_one_chain_is_causal_decoding_until_it_is_rejected(int ranks)
    {
        var decode = new DecodeCase("a chain") { Options = new AttentionOptions { Causal = true }, NewTokens = 2, QueryLength = 2 };

        RunAll(AttentionGroup.JoinInProcess(ranks, _options), group =>
        {
            using ShardedKvCache cache = group.CreateCache(decode.CacheOptions);
            decode.Fill(cache, 200);
            int before = cache.LengthOf(0, 0);
            using SpeculativeStep step = group.CreateSpeculativeStep(cache, decode.DecodeOptions(), TokenTree.FromParents([-1, 0]));
            float[] output = new float[decode.Rows * 2 * decode.QueryHeads * decode.ValueDim];
            float[] lse = new float[decode.Rows * decode.QueryHeads * 2];
            (float[] key, float[] value) = decode.LastTokens();

            group.Speculate(step, 0, decode.Query, key, value, output, lse, TestContext.Current.CancellationToken);
            int during = cache.LengthOf(0, 0);
            group.Reject(step, 0);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
            Assert.Equal((before + 2, before), (during, cache.LengthOf(0, 0)));
        });
    }

    [Theory, InlineData(PrefillMethod.Ring), InlineData(PrefillMethod.Chunked)]
    public void Prompts_are_prefilled_by_shares_and_an_error_leaves_the_group_as_it_was(PrefillMethod method)
    {
        var prompts = new PrefillCase("library") { Lengths = [90, 40], Padding = [0, 0] };
        var results = new PrefillResults(prompts);

        RunAll(AttentionGroup.JoinInProcess(3, _options), group =>
        {
            using ShardedKvCache cache = group.CreateCache(prompts.Cache);
            using PrefillStep prefill = group.CreatePrefill(cache, prompts.Options(method));
            float[] output = new float[prefill.Tokens.Count * 4 * 7];
            float[] lse = new float[prefill.Tokens.Count * 4];
            float[] key = prompts.Of(2, 0, prefill.Tokens);
            float[] bad = [.. key.Select(_ => float.NaN)];

            FaultException fault = Assert.Throws<FaultException>(() => group.Prefill(
                prefill, 0, prompts.Of(1, 0, prefill.Tokens), bad, prompts.Of(3, 0, prefill.Tokens), output, lse, TestContext.Current.CancellationToken));
            group.Prefill(
                prefill, 0, prompts.Of(1, 0, prefill.Tokens), key, prompts.Of(3, 0, prefill.Tokens), output, lse, TestContext.Current.CancellationToken);

            Assert.Equal((FaultCode.BadInput, true), (fault.Code, fault.IsAgreed));
            results.Add(prefill.Tokens, output, lse);
        });

        results.Check();
    }

    [Fact]
    public void A_prompt_prefilled_in_chunks_is_causal_attention_and_decoding_goes_on_over_it()
    {
        var decode = new DecodeCase("chunks of prefill") { Before = [600], Padding = [0], Options = new AttentionOptions { Causal = true } };
        var prompt = new AttentionProblem(decode.Shape with { QueryLength = 600, KeyLength = 600 }, decode.Options);
        using var query = HostTensor.Normal("query", ElementType.Float32, [1, 600, decode.QueryHeads, decode.HeadDim], 3);
        float[] queries = [.. query.Values.Select(value => (float)value)];
        int width = decode.QueryHeads * decode.HeadDim;

        RunAll(AttentionGroup.JoinInProcess(3, _options), group =>
        {
            using ShardedKvCache cache = group.CreateCache(decode.CacheOptions);
            float[] output = new float[600 * decode.QueryHeads * decode.ValueDim];
            float[] lse = new float[600 * decode.QueryHeads];
            using (DecodeStep chunk = group.CreateStep(cache, decode.DecodeOptions() with { QueryLength = 200 }))
            {
                for (int first = 0; first < 600; first += 200)
                {
                    float[] lines = new float[200 * decode.QueryHeads];
                    group.Decode(
                        chunk, 0, queries.AsSpan(first * width, 200 * width), decode.Keys(0, first, 200), decode.Values(0, first, 200),
                        output.AsSpan(first * decode.QueryHeads * decode.ValueDim, 200 * decode.QueryHeads * decode.ValueDim), lines,
                        CancellationToken.None);
                    for (int i = 0; i < lines.Length; i++)
                    {
                        lse[(i / 200 * 600) + first + (i % 200)] = lines[i];
                    }
                }
            }

            using DecodeStep step = group.CreateStep(cache, decode.DecodeOptions());
            (float[] last, float[] lastLse) = decode.RunLast(step);

            using var key = new HostTensor("key", ElementType.Float32, [1, 600, 2, 16], [.. decode.Keys(0, 0, 600).ToArray().Select(x => (double)x)]);
            using var value = new HostTensor("value", ElementType.Float32, [1, 600, 2, 16], [.. decode.Values(0, 0, 600).ToArray().Select(x => (double)x)]);
            VerificationReport prefill = Agreement.Check(
                new ReferenceCall(prompt.Shape, prompt.Options, query.View, key.View, value.View, ElementType.Float32), output, lse, 7);
            Assert.True(prefill.Wrong == 0, prefill.WorstRow);
            VerificationReport report = decode.Check(last, lastLse);
            Assert.True(report.Wrong == 0, report.WorstRow);
        });
    }

    [Fact]
    public void A_process_that_nobody_launched_joins_alone()
    {
        using var group = AttentionGroup.Join(_options);

        Assert.Equal((0, 1, "1 rank in this process"), (group.Rank, group.Size, group.Description));
        FaultException fault = Assert.Throws<FaultException>(() => AttentionGroup.Join(_options with { Ranks = 2 }));
        Assert.Contains("JoinInProcess", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Tensor_parallel_parts_shard_the_sequence_each_on_their_own()
    {
        // Two slices of heads, each over two sequence shards: every slice is a decode of its own.
        DecodeCase[] slices = [new DecodeCase("slice 0") { QueryHeads = 3, KvHeads = 1 }, new DecodeCase("slice 1") { QueryHeads = 3, KvHeads = 1 }];

        RunAll(AttentionGroup.JoinInProcess(4, _options), group =>
        {
            int slice = group.Rank / 2;
            using AttentionGroup part = group.Split(slice, group.Rank % 2);
            DecodeCase decode = slices[slice];
            using ShardedKvCache cache = part.CreateCache(decode.CacheOptions);
            decode.Fill(cache, 300);
            using DecodeStep step = part.CreateStep(cache, decode.DecodeOptions());

            (float[] output, float[] lse) = decode.RunLast(step);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
            Assert.Equal((2, group.Rank % 2), (part.Size, part.Rank));
        });
    }

    [Fact]
    public void A_cancelled_step_does_nothing_before_it_begins()
    {
        var decode = new DecodeCase("cancelled");
        using var cancelled = new CancellationTokenSource();
        cancelled.Cancel();

        using var group = AttentionGroup.Join(_options);
        using ShardedKvCache cache = group.CreateCache(decode.CacheOptions);
        using DecodeStep step = group.CreateStep(cache, decode.DecodeOptions());
        (float[] key, float[] value) = decode.LastTokens();

        Assert.Throws<OperationCanceledException>(() => group.Decode(
            step, 0, decode.Query, key, value, new float[decode.Query.Length], new float[12], cancelled.Token));
        Assert.Equal(0, cache.LengthOf(0));
    }

    [Fact]
    public void Cancelling_a_rank_that_waits_ends_the_group_with_typed_exceptions()
    {
        var decode = new DecodeCase("waiting") { Before = [0, 0] };
        var seen = new Exception?[2];
        using var cancellation = new CancellationTokenSource();
        using var ended = new ManualResetEventSlim();

        RunAll(AttentionGroup.JoinInProcess(2, _options), group =>
        {
            using ShardedKvCache cache = group.CreateCache(decode.CacheOptions);
            using DecodeStep step = group.CreateStep(cache, decode.DecodeOptions());
            if (group.Rank == 1)
            {
                // Rank 0 waits for this one, which comes when the group has ended.
                cancellation.CancelAfter(200);
                Assert.True(ended.Wait(TimeSpan.FromSeconds(30), CancellationToken.None));
                seen[1] = Record.Exception(() => group.Gather(1));
                return;
            }

            (float[] key, float[] value) = decode.LastTokens();
            seen[0] = Record.Exception(() => group.Decode(
                step, 0, decode.Query, key, value, new float[decode.Query.Length], new float[12], cancellation.Token));
            ended.Set();
        });

        Assert.IsAssignableFrom<OperationCanceledException>(seen[0]);
        Assert.Equal(FaultCode.PeerLost, Assert.IsType<FaultException>(seen[1]).Code);
    }

    [Fact]
    public void A_full_cache_is_the_same_fault_on_every_rank_and_leaves_the_group_working()
    {
        var decode = new DecodeCase("full") { Before = [5, 7] };

        RunAll(AttentionGroup.JoinInProcess(2, _options), group =>
        {
            using ShardedKvCache cache = group.CreateCache(decode.CacheOptions with { MaxLength = 7 });
            decode.Fill(cache, 7);
            using DecodeStep step = group.CreateStep(cache, decode.DecodeOptions());
            (float[] key, float[] value) = decode.LastTokens();
            float[] output = new float[decode.Query.Length];

            FaultException fault = Assert.Throws<FaultException>(
                () => group.Decode(step, 0, decode.Query, key, value, output, new float[12], CancellationToken.None));
            cache.Truncate(1, 6);
            group.Decode(step, 0, decode.Query, key, value, output, new float[12], CancellationToken.None);

            Assert.Equal(FaultCode.OutOfMemory, fault.Code);
            Assert.True(fault.IsAgreed);
            Assert.Equal(7, cache.LengthOf(1));
        });
    }

    private static void RunAll(IReadOnlyList<AttentionGroup> groups, Action<AttentionGroup> body)
    {
        var failures = new Exception?[groups.Count];
        Thread[] threads = [.. groups.Select((group, rank) => new Thread(() => failures[rank] = Record.Exception(() =>
        {
            using (group)
            {
                body(group);
            }
        })))];
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => Assert.True(thread.Join(TimeSpan.FromSeconds(60)), "a rank does not end"));
        Assert.All(failures, failure => Assert.True(failure is null, $"{failure}"));
    }
}
