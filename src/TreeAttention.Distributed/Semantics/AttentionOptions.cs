using System.Linq;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention;

/// <summary>What attention means in one call: scale, masks and biases. All positions are global, whatever the shards.</summary>
/// <remarks>
/// The semantics are those of flash-attn where it has the option. <c>shift = key_len - query_len</c>, with each batch
/// row's own lengths, so that the last query is aligned with the last key. Every array is row-major.
/// </remarks>
public sealed record AttentionOptions
{
    /// <summary>Factor on query·key; 1/√head_dim when null.</summary>
    public double? Scale { get; init; }

    /// <summary>Key j is kept for query i when j &lt;= i + shift.</summary>
    public bool Causal { get; init; }

    /// <summary>Key j is kept when j &gt;= i + shift - left; unbounded when negative.</summary>
    public int WindowLeft { get; init; } = -1;

    /// <summary>Key j is kept when j &lt;= i + shift + right; unbounded when negative.</summary>
    public int WindowRight { get; init; } = -1;

    /// <summary>
    /// N &gt; 0: chunked local attention, as in Llama 4. Query and key stand in the same chunk of N positions, counted from the sequence's
    /// first key behind its left padding, and the key no later than the query: causal is implied. No chunks when 0 or less.
    /// </summary>
    public int LocalChunk { get; init; }

    /// <summary>c &gt; 0: score := c·tanh(score / c), on scaled scores, before biases and masks.</summary>
    public float Softcap { get; init; }

    /// <summary>[query_heads] or [batch, query_heads], with packed sequences [sequences, query_heads]: score -= slope·|i + shift - j|.</summary>
    public float[]? AlibiSlopes { get; init; }

    /// <summary>[query_heads]: one more logit per head in the denominator, without a value; counted once, at the edge.</summary>
    public float[]? Sinks { get; init; }

    /// <summary>[batch]: keys at and past the length are absent.</summary>
    public int[]? KeyLengths { get; init; }

    /// <summary>[batch]: queries at and past the length give output 0 and lse -∞.</summary>
    public int[]? QueryLengths { get; init; }

    /// <summary>[batch]: keys before this place are absent, as <c>leftpad_k</c> of flash-attn; places stay those of the whole row.</summary>
    public int[]? KeyStarts { get; init; }

    /// <summary>
    /// [sequences + 1], with <see cref="PackedKeys"/>: sequence s has the queries from element s up to, not including, element s + 1
    /// of the one batch row, as <c>cu_seqlens_q</c> of flash-attn. A query sees keys of its own sequence alone, and every other
    /// option counts inside the sequence: shift is its number of keys less its number of queries, tails are its last keys.
    /// </summary>
    public int[]? PackedQueries { get; init; }

    /// <summary>[sequences + 1]: the same for keys, as <c>cu_seqlens_k</c> of flash-attn.</summary>
    public int[]? PackedKeys { get; init; }

    /// <summary>
    /// [1 | batch, query_len] for token trees: query i stands at shift + depth[i] instead of shift + i, and so does the key that
    /// belongs to it, key i + shift; for causal, window, chunks and ALiBi. Which of these keys a query sees says a tail mask.
    /// </summary>
    public int[]? QueryDepths { get; init; }

    /// <summary>[batch, query_len], depth-first tree order; with <see cref="DfsEnd"/>: j &lt;= i + shift and start[i] &lt;= end[j]. Packed sequences count on their own.</summary>
    public int[]? DfsStart { get; init; }

    /// <summary>[batch, key_len]: see <see cref="DfsStart"/>.</summary>
    public int[]? DfsEnd { get; init; }

    /// <summary>[batch, query_len, <see cref="TailMaskLength"/>] over the row's last keys; true keeps.</summary>
    public bool[]? TailMask { get; init; }

    /// <summary>Keys that <see cref="TailMask"/> covers.</summary>
    public int TailMaskLength { get; init; }

    /// <summary>[1 | batch, query_len, <see cref="TailBiasLength"/>] over the row's last keys, added after softcap; -∞ masks.</summary>
    public float[]? TailBias { get; init; }

    /// <summary>Keys that <see cref="TailBias"/> covers.</summary>
    public int TailBiasLength { get; init; }

    /// <summary>Base of the log-sum-exp that a caller gets. Inside, everything is in natural units.</summary>
    public LogarithmBase LseBase { get; init; }

    /// <summary>No query sees a key behind its own position.</summary>
    internal bool IsCausal => Causal || LocalChunk > 0;

    /// <summary>The options that are used: <c>causal, alibi of 8</c>.</summary>
    public override string ToString()
    {
        string used = string.Join(", ", AttentionOption.All.Where(option => option.IsUsedBy(this)).Select(option => option.Describe(this)));
        return used.Length > 0 ? used : "no option";
    }

    /// <summary>Each query has a position of its own, at which a rotary embedding turns it; else all stand where the first new key does, as in flash-attn.</summary>
    internal bool AreQueriesAligned => AttentionOption.All.Any(option => option.AlignsQueries && option.IsUsedBy(this));
}

/// <summary>Bases of a log-sum-exp.</summary>
public enum LogarithmBase
{
    /// <summary>e, as flash-attn has it.</summary>
    Natural,

    /// <summary>2, for who merges with FlashInfer: the natural logarithm divided by ln 2 in double, then rounded. -∞ stays.</summary>
    Two,
}
