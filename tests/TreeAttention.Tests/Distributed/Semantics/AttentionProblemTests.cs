using System;
using TreeAttention.Distributed.Semantics;
using Xunit;

namespace TreeAttention.Tests.Distributed.Semantics;

public sealed class AttentionProblemTests
{
    private static readonly AttentionShape _shape = new(2, 3, 10, 4, 2, 8, 8);

    public static TheoryData<string, string> Faults => new()
    {
        { "alibi", "AttentionOptions.AlibiSlopes has 5 elements but [query_heads] or [batch, query_heads] asks for 4 or 8." },
        { "sinks", "AttentionOptions.Sinks has 8 elements but [query_heads] asks for 4." },
        { "key-lengths", "AttentionOptions.KeyLengths has 3 elements but [batch] asks for 2." },
        { "long-key", "AttentionOptions.KeyLengths[1] is 11, outside 0 to 10" },
        { "negative-query", "AttentionOptions.QueryLengths[0] is -1, outside 0 to 3" },
        { "dfs-alone", "needs both AttentionOptions.DfsStart [batch, query_len] and AttentionOptions.DfsEnd [batch, key_len]" },
        { "dfs-end", "AttentionOptions.DfsEnd has 19 elements but [batch, key_len] asks for 20." },
        { "tail-mask", "AttentionOptions.TailMask has 23 elements but [batch, query_len, tail] asks for 24." },
        { "tail-bias", "AttentionOptions.TailBias has 13 elements but [1 or batch, query_len, tail] asks for 12 or 24." },
    };

    [Theory, MemberData(nameof(Faults))]
    public void An_option_that_does_not_fit_is_named_with_what_it_has_and_what_it_needs(string which, string message)
    {
        AttentionOptions options = Options(which);

        ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(_shape, options));

        Assert.Contains(message, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Options_that_fit_are_accepted()
    {
        var problem = new AttentionProblem(_shape, new AttentionOptions
        {
            AlibiSlopes = new float[8],
            Sinks = new float[4],
            KeyLengths = [0, 10],
            QueryLengths = [3, 0],
            DfsStart = new int[6],
            DfsEnd = new int[20],
            TailMask = new bool[24],
            TailMaskLength = 4,
            TailBias = new float[12],
            TailBiasLength = 4,
        });

        Assert.Equal(1 / MathF.Sqrt(8), problem.Scale, 1e-7f);
    }

    [Theory]
    [InlineData(5, 2, 8, 8, "5 query heads are not a multiple of 2 KV heads")]
    [InlineData(4, 2, 577, 8, "Head dimension 577 and value dimension 8 must lie between 1 and 576")]
    [InlineData(4, 2, 8, 0, "value dimension 0")]
    [InlineData(4, 0, 8, 8, "at least one head")]
    public void A_shape_that_is_no_attention_call_is_refused(int heads, int kvHeads, int dim, int valueDim, string message)
    {
        var shape = new AttentionShape(1, 1, 1, heads, kvHeads, dim, valueDim);

        ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(shape, new AttentionOptions()));

        Assert.Contains(message, error.Message, StringComparison.Ordinal);
    }

    private static AttentionOptions Options(string which) => which switch
    {
        "alibi" => new AttentionOptions { AlibiSlopes = new float[5] },
        "sinks" => new AttentionOptions { Sinks = new float[8] },
        "key-lengths" => new AttentionOptions { KeyLengths = [1, 2, 3] },
        "long-key" => new AttentionOptions { KeyLengths = [10, 11] },
        "negative-query" => new AttentionOptions { QueryLengths = [-1, 0] },
        "dfs-alone" => new AttentionOptions { DfsStart = new int[6] },
        "dfs-end" => new AttentionOptions { DfsStart = new int[6], DfsEnd = new int[19] },
        "tail-mask" => new AttentionOptions { TailMask = new bool[23], TailMaskLength = 4 },
        _ => new AttentionOptions { TailBias = new float[13], TailBiasLength = 4 },
    };
}
