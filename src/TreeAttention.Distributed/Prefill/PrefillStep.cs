using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using TreeAttention.Distributed.Cache;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Prefill;
using TreeAttention.Distributed.Steps;

namespace TreeAttention;

/// <summary>Takes prompts into a cache and attends with each of their tokens to those up to it; decoding then goes on as if they had been appended.</summary>
/// <remarks>
/// What is stored has the bits that <see cref="ShardedKvCache.Append(int, ReadOnlySpan{float}, ReadOnlySpan{float})"/> would have stored, in the pages that
/// it would have used. Made once for given prompts, run for each layer. Calls come from one thread, the same on every rank.
/// </remarks>
public abstract class PrefillStep : IDisposable, IGroupStep<LayerCall>
{
    private readonly StorageCheck _check;

    private protected PrefillStep(RankContext context, ShardedKvCache cache, PrefillOptions options, int[] rows, PromptToken[] tokens)
    {
        (Context, Cache, Options, Rows, Tokens) = (context, cache, options, rows, tokens);
        _check = new StorageCheck(cache.Options);
        Tenancy = new Tenancy(context.Door, nameof(PrefillStep), Close);
    }

    /// <summary>The tokens that this rank gives and gets the results of, in their order: its share of each prompt, or with chunked all.</summary>
    public IReadOnlyList<PromptToken> Tokens { get; }

    /// <summary>The tokens of any rank, as <see cref="Tokens"/> are those of this one.</summary>
    public abstract IEnumerable<PromptToken> TokensOf(int rank);

    /// <summary>Where the time of the last run's attention went.</summary>
    public StepTimes Times { get; private protected set; }

    /// <summary>What a step does: <c>ring over 2 prompts of 34,000 tokens, 32 heads</c>.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{Options.Method.Name()} over {Options.Lengths.Length} prompts of {Options.Lengths.Sum(length => (long)length):N0} tokens, "
        + $"{Options.QueryHeads} heads");

    private protected RankContext Context { get; }

    private protected ShardedKvCache Cache { get; }

    private protected PrefillOptions Options { get; }

    /// <summary>[prompts] the cache's rows.</summary>
    private protected int[] Rows { get; }

    /// <summary>Prepares a prefill. Every rank calls it with the same options.</summary>
    /// <param name="context">The rank, as the cache was made with it.</param>
    /// <param name="cache">The cache; it must outlive the step.</param>
    /// <param name="options">Prompts, meaning of attention, method.</param>
    /// <exception cref="ShapeMismatchException">The options do not fit the cache or one another.</exception>
    /// <exception cref="FaultException">The method or plan does not go with the cache (2), out of memory (71).</exception>
    internal static PrefillStep Create(RankContext context, ShardedKvCache cache, PrefillOptions options)
    {
        int[] rows = options.Rows ?? [.. Enumerable.Range(0, cache.Options.Rows)];
        PrefillRules.Check(cache, options, rows);
        return options.Method == PrefillMethod.Chunked
            ? new ChunkedPrefill(context, cache, options, rows)
            : new ShardedPrefill(context, cache, options, rows, new PromptLayout(cache.Options, options, rows));
    }

    /// <summary>Takes the prompts into a layer, and attends.</summary>
    /// <param name="layer">The layer. With ring and gather its rows are empty; with chunked the prompts continue what they hold.</param>
    /// <param name="query">[tokens of this rank, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[tokens of this rank, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[tokens of this rank, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[tokens of this rank, query_heads, value_dim]</param>
    /// <param name="lse">[query_heads, tokens of this rank], in the base of the options, sinks included; as flash-attn's of packed sequences.</param>
    /// <exception cref="InvalidOperationException">A row has tokens already, with ring or gather.</exception>
    /// <exception cref="FaultException">
    /// On every rank alike: the cache is full (71), a number must not be used or a tensor is of another size (65); nothing was stored. Or the ranks failed.
    /// </exception>
    internal void Run(
        int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output, Span<float> lse)
    {
        Cache.Rows.RequireLayer(layer);
        if (Options.Method != PrefillMethod.Chunked)
        {
            RequireEmpty(layer);
        }

        FaultException? fault = null;
        try
        {
            RequireSizes(query.Length, key.Length, value.Length, output.Length, lse.Length);
            RequireNumbers(layer, query, key, value);
        }
        catch (ShapeMismatchException error)
        {
            fault = new FaultException(FaultCode.BadInput, error.Message, error);
        }
        catch (FaultException error)
        {
            fault = error;
        }

        RankAgreement.Settle(Context.Control, fault);
        var before = new CacheMark(Cache, layer, Rows, new int[Rows.Length]);
        try
        {
            Cache.Rows.MakeRoom(layer, Rows, Options.Lengths);
            RunPrompts(layer, query, key, value, output, lse);
        }
        catch (Exception error)
        {
            before.Restore(error);
            throw;
        }
    }

    /// <summary>The step's life.</summary>
    internal Tenancy Tenancy { get; }

    /// <inheritdoc/>
    RankContext IGroupStep.Context => Context;

    /// <inheritdoc/>
    long IGroupStep.TokensTaken => Cache.Rows.Taken;

    /// <inheritdoc/>
    void IGroupStep.RequireUsable()
    {
        Tenancy.RequireLiving();
        Cache.RequireUsable();
    }

    /// <inheritdoc/>
    void IGroupStep<LayerCall>.Run(LayerCall call) => Run(call.Layer, call.Query, call.Key, call.Value, call.Output, call.Lse);

    /// <inheritdoc cref="DecodeStep.Dispose"/>
    public void Dispose()
    {
        Tenancy.End();
        GC.SuppressFinalize(this);
    }

    /// <summary>Frees what the step allocated.</summary>
    private protected abstract void Close();

    /// <summary>Attends and stores: sizes and numbers are right, there is room.</summary>
    private protected abstract void RunPrompts(
        int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output, Span<float> lse);

    private void RequireEmpty(int layer)
    {
        foreach (int row in Rows)
        {
            if (Cache.Rows.LengthOf(layer, row) > 0)
            {
                throw new InvalidOperationException(
                    $"Row {row} has {Cache.Rows.LengthOf(layer, row)} tokens in layer {layer}: {Options.Method.Name()} begins empty rows. Release the row, or continue it "
                    + "with chunked prefill.");
            }
        }
    }

    private void RequireSizes(int query, int key, int value, int output, int lse)
    {
        CacheOptions sizes = Cache.Options;
        long tokens = Tokens.Count;
        long heads = Options.QueryHeads;
        if (query != tokens * heads * sizes.HeadDim || key != tokens * sizes.KeyFloats || value != tokens * sizes.ValueFloats
            || output != tokens * heads * sizes.ValueDim || lse != tokens * heads)
        {
            throw new ShapeMismatchException(
                $"This rank has {tokens} tokens of the prompts, of {heads} × {sizes.HeadDim} query, {sizes.KeyFloats} key, {sizes.ValueFloats} value and "
                + $"{heads} × {sizes.ValueDim} output elements and {heads} log-sum-exps each, but was given {query}, {key}, {value}, {output} and {lse}.");
        }
    }

    private void RequireNumbers(int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value)
    {
        CacheOptions sizes = Cache.Options;
        int refused = StorageCheck.FirstRefused(query, sizes.NonFinite);
        if (refused >= 0)
        {
            (int line, int dim) = Math.DivRem(refused, sizes.HeadDim);
            PromptToken token = Tokens[line / Options.QueryHeads];
            throw StorageRange.FaultOf(
                "query", token.Row, token.Index, line % Options.QueryHeads, dim, query[refused], ElementType.Float32, NonFinitePolicy.Error)!;
        }

        if (_check.AllFit(key, value, isRotated: false))
        {
            return;
        }

        for (int i = 0; i < Tokens.Count; i++)
        {
            int position = Cache.Rows.LengthOf(layer, Tokens[i].Row) + Tokens[i].Index;
            _check.RequireKey(
                Tokens[i].Row, position, Cache.TurnOf(Tokens[i].Row, position), key.Slice(i * sizes.KeyFloats, sizes.KeyFloats), isRotated: false);
        }

        for (int i = 0; i < Tokens.Count; i++)
        {
            int position = Cache.Rows.LengthOf(layer, Tokens[i].Row) + Tokens[i].Index;
            _check.RequireValue(Tokens[i].Row, position, value.Slice(i * sizes.ValueFloats, sizes.ValueFloats));
        }
    }
}

/// <summary>A token of a prompt.</summary>
/// <param name="Row">The cache's row that it enters.</param>
/// <param name="Index">Its place in the prompt, from 0 on.</param>
public readonly record struct PromptToken(int Row, int Index);
