using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Prefill;

/// <summary>Prefill by chunks: every rank has all tokens, and decodes a chunk of them after the other.</summary>
/// <remarks>
/// A chunk of a row begins at a multiple of the chunk's length in its prompt, whatever the other rows are: rows whose chunks are equally long
/// go together. So with the lanes the bits depend on neither the ranks nor the other rows.
/// </remarks>
internal sealed class ChunkedPrefill : PrefillStep
{
    // Full chunks and last ones in turn, layer after layer, are two steps; each holds memory for its chunk.
    private const int MostSteps = 2;

    private readonly List<(int[] Prompts, DecodeStep Step)> _steps = []; // the latest last
    private readonly int[] _firsts; // [prompts] number of each one's first token
    private float[] _query = [];
    private float[] _key = [];
    private float[] _value = [];
    private float[] _output = [];
    private float[] _lse = [];

    public ChunkedPrefill(RankContext context, ShardedKvCache cache, PrefillOptions options, int[] rows)
        : base(context, cache, options, rows, [.. rows.SelectMany((row, prompt) => Enumerable.Range(0, options.Lengths[prompt]).Select(
            index => new PromptToken(row, index)))])
    {
        _firsts = new int[rows.Length];
        for (int prompt = 1; prompt < rows.Length; prompt++)
        {
            _firsts[prompt] = _firsts[prompt - 1] + options.Lengths[prompt - 1];
        }

        IGrouping<int, int>? largest = ChunksAt(0).OrderBy(group => group.Count() * group.Key).LastOrDefault();
        if (largest is not null)
        {
            StepFor([.. largest], largest.Key); // so that what does not fit is said here
        }
    }

    /// <inheritdoc/>
    public override IEnumerable<PromptToken> TokensOf(int rank) => Tokens;

    /// <inheritdoc/>
    private protected override void Close() => _steps.ForEach(entry => entry.Step.Close());

    private protected override void RunPrompts(
        int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output, Span<float> lse)
    {
        (long compute, long communication) = (0, 0);
        for (long first = 0; first < Options.Lengths.DefaultIfEmpty().Max(); first += Options.Chunk)
        {
            foreach (IGrouping<int, int> group in ChunksAt((int)first))
            {
                int[] prompts = [.. group];
                int count = group.Key;
                DecodeStep step = StepFor(prompts, count);
                Take(query, ref _query, prompts, (int)first, count);
                Take(key, ref _key, prompts, (int)first, count);
                Take(value, ref _value, prompts, (int)first, count);
                int rows = prompts.Length * count * Options.QueryHeads;
                Reserve(ref _output, rows * Cache.Options.ValueDim);
                Reserve(ref _lse, rows);
                Span<float> chunk = _output.AsSpan(0, rows * Cache.Options.ValueDim);
                step.Run(layer, Of(_query, query, prompts, count), Of(_key, key, prompts, count), Of(_value, value, prompts, count), chunk, _lse.AsSpan(0, rows));
                (compute, communication) = (compute + step.Times.ComputeTicks, communication + step.Times.CommunicationTicks);
                Give(chunk, output, prompts, (int)first, count);
                GiveLines(lse, prompts, (int)first, count);
            }
        }

        Times = new StepTimes(compute, communication);
    }

    // Prompts that have tokens from there on, by the length of their chunk.
    private IEnumerable<IGrouping<int, int>> ChunksAt(int first) => Enumerable.Range(0, Rows.Length)
        .Where(prompt => Options.Lengths[prompt] > first)
        .GroupBy(prompt => Math.Min(Options.Chunk, Options.Lengths[prompt] - first));

    private DecodeStep StepFor(int[] prompts, int count)
    {
        int kept = _steps.FindIndex(entry => entry.Step.Problem.Shape.QueryLength == count && entry.Prompts.AsSpan().SequenceEqual(prompts));
        if (kept >= 0)
        {
            return _steps[kept].Step;
        }

        if (_steps.Count == MostSteps)
        {
            _steps[0].Step.Close();
            _steps.RemoveAt(0);
        }

        AttentionOptions attention = Options.Attention;
        float[]? slopes = attention.AlibiSlopes is { } all && all.Length > Options.QueryHeads
            ? [.. prompts.SelectMany(prompt => all.AsSpan(prompt * Options.QueryHeads, Options.QueryHeads).ToArray())]
            : attention.AlibiSlopes;
        var step = new DecodeStep(Context, Cache, new DecodeOptions
        {
            QueryLength = count,
            QueryHeads = Options.QueryHeads,
            Rows = [.. prompts.Select(prompt => Rows[prompt])],
            Attention = attention with { Causal = true, AlibiSlopes = slopes },
            Plan = Options.Plan,
        });
        _steps.Add((prompts, step));
        return step;
    }

    private int FloatsOf(int all) => all / Math.Max(1, Tokens.Count);

    private void Take(ReadOnlySpan<float> all, ref float[] chunk, int[] prompts, int first, int count)
    {
        int floats = FloatsOf(all.Length);
        Reserve(ref chunk, prompts.Length * count * floats);
        for (int i = 0; i < prompts.Length; i++)
        {
            all.Slice((_firsts[prompts[i]] + first) * floats, count * floats).CopyTo(chunk.AsSpan(i * count * floats));
        }
    }

    private ReadOnlySpan<float> Of(float[] chunk, ReadOnlySpan<float> all, int[] prompts, int count) =>
        chunk.AsSpan(0, prompts.Length * count * FloatsOf(all.Length));

    private void Give(ReadOnlySpan<float> chunk, Span<float> all, int[] prompts, int first, int count)
    {
        int floats = FloatsOf(all.Length);
        for (int i = 0; i < prompts.Length; i++)
        {
            chunk.Slice(i * count * floats, count * floats).CopyTo(all[((_firsts[prompts[i]] + first) * floats)..]);
        }
    }

    // [prompts of the chunk, query_heads, count] into [query_heads, tokens].
    private void GiveLines(Span<float> lse, int[] prompts, int first, int count)
    {
        for (int line = 0; line < prompts.Length * Options.QueryHeads; line++)
        {
            (int i, int head) = Math.DivRem(line, Options.QueryHeads);
            _lse.AsSpan(line * count, count).CopyTo(lse[((head * Tokens.Count) + _firsts[prompts[i]] + first)..]);
        }
    }

    private static void Reserve(ref float[] room, int floats) => room = room.Length < floats ? new float[floats] : room;
}
