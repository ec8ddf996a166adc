using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Testing.Cases;

/// <summary>What the ranks got of their tokens, put together by row.</summary>
internal sealed class PrefillResults(PrefillCase prompts)
{
    private readonly ConcurrentDictionary<PromptToken, (float[] Output, float[] Lse)> _results = [];

    /// <summary>Takes the results of a rank; ranks that have the same token have the same bits.</summary>
    public void Add(IReadOnlyList<PromptToken> tokens, float[] output, float[] lse)
    {
        int floats = prompts.QueryHeads * prompts.ValueDim;
        for (int i = 0; i < tokens.Count; i++)
        {
            (float[] Output, float[] Lse) mine = (
                output.AsSpan(i * floats, floats).ToArray(),
                [.. Enumerable.Range(0, prompts.QueryHeads).Select(head => lse[(head * tokens.Count) + i])]);
            (float[] Output, float[] Lse) kept = _results.GetOrAdd(tokens[i], mine);
            Assert.Equal(kept.Output, mine.Output);
            Assert.Equal(kept.Lse, mine.Lse);
        }
    }

    /// <summary>All numbers of a row: [length, heads, value_dim] and [heads, length].</summary>
    public (float[] Output, float[] Lse) Row(int row)
    {
        (float[] Output, float[] Lse)[] tokens = [.. Enumerable.Range(0, prompts.Lengths[row]).Select(index => _results[new PromptToken(row, index)])];
        return (
            [.. tokens.SelectMany(token => token.Output)],
            [.. Enumerable.Range(0, prompts.QueryHeads).SelectMany(head => tokens.Select(token => token.Lse[head]))]);
    }

    /// <summary>Holds every row against float64.</summary>
    public void Check(int layer = 0)
    {
        for (int row = 0; row < prompts.Lengths.Length; row++)
        {
            (float[] output, float[] lse) = Row(row);
            VerificationReport report = prompts.Check(layer, row, output, lse);
            Assert.True(report.Wrong == 0, $"{prompts.Name}, row {row}: {report.WorstRow}");
        }
    }
}
