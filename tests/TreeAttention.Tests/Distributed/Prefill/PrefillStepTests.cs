using System;
using System.Collections.Concurrent;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Prefill;

public sealed class PrefillStepTests
{
    private static readonly KeyValueScales _scales = new([0.01f, 0.02f], [0.03f, 0.005f]);

    private static readonly PrefillCase[] _cases =
    [
        new("ragged"),
        new("rotary and padding") { Rotary = new RotaryOptions(8), Type = ElementType.BFloat16 },
        new("i8 with scales") { Type = ElementType.Int8, Scales = new([0.05f, 0.06f], [0.05f, 0.07f]), Rotary = new RotaryOptions(12) },
        new("f8 with scales") { Type = ElementType.Float8E4M3, Scales = _scales, Rotary = new RotaryOptions(12, Interleaved: true) },
        new("values in keys") { ValuesInKeys = true, Type = ElementType.Float16 },
        new("fewer tokens than ranks") { Lengths = [2, 1], Padding = [0, 0] },
        new("one row") { Lengths = [1100], Padding = [0], Attention = new AttentionOptions { Softcap = 3, Sinks = [0.1f, 0.2f, -1, 4] } },
        new("window and slopes")
        {
            Attention = new AttentionOptions { WindowLeft = 100, AlibiSlopes = [.. Enumerable.Range(1, 16).Select(i => i * 0.01f)] },
        },
        new("chunks of local attention, lse to base 2") { Attention = new AttentionOptions { LocalChunk = 70, LseBase = LogarithmBase.Two } },
    ];

    public static TheoryData<string, PrefillMethod, int> Runs
    {
        get
        {
            var data = new TheoryData<string, PrefillMethod, int>();
            int[] ranks = [1, 2, 3, 4, 5, 8];
            for (int i = 0; i < _cases.Length; i++)
            {
                foreach (PrefillMethod method in Enum.GetValues<PrefillMethod>())
                {
                    data.Add(_cases[i].Name, method, ranks[((5 * i) + (2 * (int)method) + 1) % ranks.Length]);
                }
            }

            return data;
        }
    }

    [Theory, MemberData(nameof(Runs))]
    public void Every_query_gets_attention_over_the_tokens_up_to_its_own_and_the_cache_is_as_if_they_were_appended(
        string name, PrefillMethod method, int ranks)
    {
        PrefillCase prompts = _cases.Single(one => one.Name == name);
        var results = new PrefillResults(prompts);

        CacheRanks.Run(ranks, context =>
        {
            using ShardedKvCache cache = prompts.NewCache(context);
            using ShardedKvCache appended = prompts.NewCache(context);
            using var step = PrefillStep.Create(context, cache, prompts.Options(method));
            (float[] output, float[] lse) = prompts.Run(step);
            prompts.Append(appended);

            results.Add(step.Tokens, output, lse);
            AssertSame(prompts, appended, cache, layer: 0);
            Assert.Equal(Decode(context, prompts, appended), Decode(context, prompts, cache));
        });

        results.Check();
    }

    [Theory]
    [InlineData("contiguous")]
    [InlineData("striped")]
    [InlineData("cyclic:100")]
    [InlineData("lanes")]
    public void Ranks_may_have_any_share_of_a_prompt_in_several_layers(string layout)
    {
        var prompts = new PrefillCase(layout) { Layers = 2, Lengths = [1030, 3], Padding = [0, 0], Rotary = new RotaryOptions(4) };
        PrefillResults[] results = [new(prompts), new(prompts)];

        CacheRanks.Run(3, context =>
        {
            using ShardedKvCache cache = prompts.NewCache(context);
            using ShardedKvCache appended = prompts.NewCache(context);
            using var step = PrefillStep.Create(context, cache, prompts.Options(PrefillMethod.Ring) with { Layout = ShardLayout.Parse(layout) });
            for (int layer = 0; layer < 2; layer++)
            {
                (float[] output, float[] lse) = prompts.Run(step, layer);
                prompts.Append(appended, layer);
                results[layer].Add(step.Tokens, output, lse);
            }

            AssertSame(prompts, appended, cache, 0);
            AssertSame(prompts, appended, cache, 1);
        });

        results[0].Check(0);
        results[1].Check(1);
    }

    [Fact]
    public void Chunks_continue_what_a_row_holds_and_rings_say_that_they_cannot()
    {
        var prompts = new PrefillCase("continued") { Lengths = [700, 300], Padding = [2, 0], Rotary = new RotaryOptions(12) };
        PrefillCase before = prompts with { Lengths = [400, 0] };
        PrefillCase behind = prompts with { Lengths = [300, 300] };
        var results = new PrefillResults(prompts);

        CacheRanks.Run(2, context =>
        {
            using ShardedKvCache cache = prompts.NewCache(context);
            using var ring = PrefillStep.Create(context, cache, before.Options(PrefillMethod.Ring));
            (float[] output, float[] lse) = prompts.Run(ring);
            results.Add(ring.Tokens, output, lse);

            Assert.Contains(
                "Row 0 has 400 tokens", Assert.Throws<InvalidOperationException>(() => prompts.Run(ring)).Message, StringComparison.Ordinal);
            using var step = PrefillStep.Create(context, cache, behind.Options(PrefillMethod.Chunked));
            PromptToken[] tokens = [.. step.Tokens.Select(token => token with { Index = token.Index + before.Lengths[token.Row] })];
            float[] rest = new float[tokens.Length * 4 * 7];
            float[] lines = new float[tokens.Length * 4];
            step.Run(0, prompts.Of(1, 0, tokens), prompts.Of(2, 0, tokens), prompts.Of(3, 0, tokens), rest, lines);
            results.Add(tokens, rest, lines);
        });

        results.Check();
    }

    [Fact]
    public void Chunked_prefill_over_lanes_has_the_same_bits_on_any_ranks_with_any_neighbours()
    {
        var prompts = new PrefillCase("bits") { Lengths = [1100, 0, 37, 600], Type = ElementType.BFloat16, Rotary = new RotaryOptions(12) };
        PrefillCase alone = prompts with { Lengths = [1100], Padding = [0] };
        float[] expected = [];
        foreach (int ranks in (int[])[1, 2, 3, 4, 5, 7, 8])
        {
            var results = new PrefillResults(prompts);
            CacheRanks.Run(ranks, context =>
            {
                using ShardedKvCache cache = prompts.NewCache(context);
                using var step = PrefillStep.Create(context, cache, Reproducible(prompts));
                (float[] output, float[] lse) = prompts.Run(step);
                results.Add(step.Tokens, output, lse);
            });

            float[] bits = [.. results.Row(0).Output, .. results.Row(0).Lse, .. results.Row(2).Output, .. results.Row(3).Output];
            expected = ranks == 1 ? bits : expected;
            Assert.Equal(expected, bits);
        }

        CacheRanks.Run(3, context =>
        {
            using ShardedKvCache cache = alone.NewCache(context);
            using var step = PrefillStep.Create(context, cache, Reproducible(alone));
            Assert.Equal(expected[..(1100 * 4 * 7)], alone.Run(step).Output);
            using ShardedKvCache other = alone.NewCache(context);
            using var plain = PrefillStep.Create(context, other, alone.Options(PrefillMethod.Chunked));
            Assert.NotEqual(expected[..(1100 * 4 * 7)], alone.Run(plain).Output); // the comparison can fail
        });
    }

    [Theory, InlineData(PrefillMethod.Ring), InlineData(PrefillMethod.Gather), InlineData(PrefillMethod.Chunked)]
    public void What_cannot_be_stored_is_refused_on_every_rank_and_the_cache_is_intact(PrefillMethod method)
    {
        var prompts = new PrefillCase("refused") { Lengths = [513, 900], Padding = [0, 0], Type = ElementType.Float16 };
        var faults = new ConcurrentBag<FaultException>();

        CacheRanks.Run(3, context =>
        {
            long page = 2L * 512 * (12 + 7) * 2;
            using var small = new ShardedKvCache(context, prompts.Cache with { MemoryBytes = page });
            using var narrow = PrefillStep.Create(context, small, prompts.Options(method));
            FaultException full = Assert.Throws<FaultException>(() => prompts.Run(narrow));
            Assert.Equal((FaultCode.OutOfMemory, true), (full.Code, full.IsAgreed));
            Assert.Equal([0, 0], [small.LengthOf(0), small.LengthOf(1)]);
            small.Append(0, [0], prompts.Of(2, 0, PrefillCase.Row(0, 0, 500)), prompts.Of(3, 0, PrefillCase.Row(0, 0, 500))); // its pages are free

            using ShardedKvCache cache = prompts.NewCache(context);
            using var step = PrefillStep.Create(context, cache, prompts.Options(method));
            float[] key = prompts.Of(2, 0, step.Tokens);
            int bad = step.Tokens.ToList().IndexOf(new PromptToken(1, 777));
            if (bad >= 0)
            {
                key[(bad * 24) + 15] = 1e6f; // one rank's number alone
            }

            float[] output = new float[step.Tokens.Count * 4 * 7];
            float[] lse = new float[step.Tokens.Count * 4];
            faults.Add(Assert.Throws<FaultException>(() =>
                step.Run(0, prompts.Of(1, 0, step.Tokens), key, prompts.Of(3, 0, step.Tokens), output, lse)));
            FaultException query = Assert.Throws<FaultException>(() => step.Run(
                0, [.. Enumerable.Repeat(float.NaN, step.Tokens.Count * 4 * 12)], prompts.Of(2, 0, step.Tokens), prompts.Of(3, 0, step.Tokens), output, lse));
            Assert.StartsWith("query[batch 0, position 0, head 0, dim 0] is NaN", query.Message, StringComparison.Ordinal);
            FaultException size = Assert.Throws<FaultException>(() => step.Run(
                0, prompts.Of(1, 0, step.Tokens), key.AsSpan(0, context.Transport.Rank == 1 ? 3 : key.Length), prompts.Of(3, 0, step.Tokens), output, lse));
            Assert.Equal(FaultCode.BadInput, size.Code);
            Assert.Equal([0, 0], [cache.LengthOf(0), cache.LengthOf(1)]);
            prompts.Run(step);
            Assert.Equal([513, 900], [cache.LengthOf(0), cache.LengthOf(1)]);
        });

        Assert.Equal(3, faults.Count);
        Assert.All(faults, fault => Assert.StartsWith("key[batch 1, position 777, head 1, dim 3] is 1000000", fault.Message, StringComparison.Ordinal));
    }

    [Fact]
    public void Options_that_do_not_fit_are_refused() => CacheRanks.Run(1, context =>
    {
        var prompts = new PrefillCase("options") { Lengths = [3, 2], Padding = [0, 0] };
        using ShardedKvCache cache = prompts.NewCache(context);
        PrefillOptions options = prompts.Options(PrefillMethod.Ring);

        Assert.Throws<ShapeMismatchException>(() => PrefillStep.Create(context, cache, options with { Rows = [1, 1] }));
        Assert.Throws<ShapeMismatchException>(() => PrefillStep.Create(context, cache, options with { Lengths = [3] }));
        Assert.Throws<ShapeMismatchException>(() => PrefillStep.Create(context, cache, options with { Lengths = [3, 9999] }));
        Assert.Throws<ShapeMismatchException>(() => PrefillStep.Create(context, cache, options with { QueryHeads = 3 }));
        Assert.Throws<ShapeMismatchException>(() => PrefillStep.Create(
            context, cache, options with { Attention = new AttentionOptions { KeyLengths = [1, 1] } }));
        using var replicated = new ShardedKvCache(context, prompts.Cache with { Replicated = true });
        Assert.Equal(
            FaultCode.CommandLine, Assert.Throws<FaultException>(() => PrefillStep.Create(context, replicated, options)).Code);
        using var one = PrefillStep.Create(context, cache, options with { Rows = [1], Lengths = [2] });
        Assert.Equal([new PromptToken(1, 0), new PromptToken(1, 1)], one.Tokens);
    });

    private static PrefillOptions Reproducible(PrefillCase prompts) => prompts.Options(PrefillMethod.Chunked) with
    {
        Plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes, QueryPlacement.Replicated),
    };

    private static void AssertSame(PrefillCase prompts, ShardedKvCache expected, ShardedKvCache actual, int layer)
    {
        float[][] numbers = [.. Enumerable.Range(0, 4).Select(i => new float[i % 2 == 0 ? 2 * prompts.HeadDim : prompts.ValuesInKeys ? 0 : 2 * prompts.ValueDim])];
        for (int row = 0; row < prompts.Lengths.Length; row++)
        {
            Assert.Equal(prompts.Lengths[row], actual.LengthOf(layer, row));
            for (int position = 0; position < prompts.Lengths[row]; position++)
            {
                bool isOwn = expected.TryRead(layer, row, position, numbers[0], numbers[1]);
                Assert.Equal(isOwn, actual.TryRead(layer, row, position, numbers[2], numbers[3]));
                Assert.True(!isOwn || (numbers[0].AsSpan().SequenceEqual(numbers[2]) && numbers[1].AsSpan().SequenceEqual(numbers[3])), $"{row} {position}");
            }
        }
    }

    // One token more for every row: all bits follow from what is stored, and from how large it is known to be.
    private static float[] Decode(RankContext context, PrefillCase prompts, ShardedKvCache cache)
    {
        using var step = new DecodeStep(context, cache, new DecodeOptions
        {
            QueryHeads = prompts.QueryHeads,
            Plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes, QueryPlacement.Replicated),
        });
        PromptToken[] next = [.. prompts.Lengths.Select((length, row) => new PromptToken(row, length))];
        float[] output = new float[next.Length * prompts.QueryHeads * prompts.ValueDim];
        float[] lse = new float[next.Length * prompts.QueryHeads];
        step.Run(0, prompts.Of(1, 0, next), prompts.Of(2, 0, next), prompts.Of(3, 0, next), output, lse);
        return [.. output, .. lse];
    }
}
