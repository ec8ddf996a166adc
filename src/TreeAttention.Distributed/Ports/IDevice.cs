using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Ports;

/// <summary>What computes: holds shards, attends to them, merges partials. One per rank; calls come from one thread.</summary>
/// <remarks>
/// Work is enqueued in order; on the CPU it is done when a call returns. After the first call of a kind with given sizes,
/// calls allocate nothing. Partials and regions passed in were allocated by this device.
/// </remarks>
internal interface IDevice : IDisposable
{
    /// <summary><c>cpu</c> or <c>cuda</c>.</summary>
    string Name { get; }

    /// <summary>What messages and tables call it: vector width and threads, or the GPU's name.</summary>
    string Description { get; }

    /// <summary>Where its memory is.</summary>
    MemoryPlace Place { get; }

    /// <summary>What was allocated through this device.</summary>
    MemoryAccount Memory { get; }

    /// <summary>Bytes that can still be allocated, by this device or by others that share its memory; <see cref="long.MaxValue"/> where nobody knows.</summary>
    long AvailableBytes => long.MaxValue;

    /// <summary>Allocates zeroed memory of the device.</summary>
    /// <exception cref="FaultException">Out of memory (71): what was needed and what there is.</exception>
    Region Allocate(long bytes, ElementType type);

    /// <summary>Frees memory that <see cref="Allocate"/> gave.</summary>
    void Free(Region region);

    /// <summary>Copies between any two places; lengths are equal.</summary>
    void Copy(Region from, Region to);

    /// <summary>Makes a partial the identity.</summary>
    void Clear(PartialAttention partial);

    /// <summary>Attention of the queries over the shard's keys, from scratch: what <paramref name="into"/> held is replaced.</summary>
    void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into);

    /// <summary>Like <see cref="Attend"/> for a shard in the lanes layout: one partial for each node, folded in the fixed order of <see cref="LaneTree"/>.</summary>
    /// <remarks>
    /// Every page is attended to from scratch; pages of a lane merge in ascending order, lanes along the binary tree. The bits
    /// of a node depend on its keys and queries alone, not on threads, batch neighbours or ranks.
    /// </remarks>
    void AttendLanes(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard,
        ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into);

    /// <summary>Folds one partial into another: <see cref="PartialAttention.MergeFrom"/> on the device.</summary>
    void Merge(PartialAttention into, PartialAttention from);

    /// <summary>numerator = output·w and denominator = w with w = unit·sum·e^(max - top), for reductions that add instead of merge.</summary>
    /// <param name="partial">The local state.</param>
    /// <param name="top">[rows] the largest max of all ranks.</param>
    /// <param name="unit">A power of two: 1, or less where a sum of numerators could overflow.</param>
    /// <param name="numerator">[rows, value_dim]</param>
    /// <param name="denominator">[rows]</param>
    void Weigh(PartialAttention partial, Region top, float unit, Region numerator, Region denominator);

    /// <summary>The inverse of <see cref="Weigh"/>: output = numerator / denominator (0 where nothing was seen), max = top, sum = denominator / unit.</summary>
    void Unweigh(Region top, float unit, Region numerator, Region denominator, PartialAttention into);

    /// <summary>Stores new keys and values in the pages of a cache: keys are rotated, both are converted to the storage type, and limits grow.</summary>
    /// <remarks>
    /// Each element is rounded once, to nearest, ties to even, after the rotation. For each page and KV head that gets a token,
    /// <see cref="PageLimits"/> become at least the norm of the stored key and the largest magnitude of the stored value, NaN
    /// when one is not finite. Tokens that other ranks own are not read.
    /// </remarks>
    /// <param name="tokens">The tokens, in this device's memory.</param>
    /// <param name="shard">The cache's contents, and its limits in <see cref="KeyValueShard.Growing"/>.</param>
    void Append(in TokenBlock tokens, KeyValueShard shard);

    /// <summary>Takes queries as models give them into the order of a <see cref="QueryBlock"/>, rotated.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="queries">[batch, query_len, query_heads, head_dim] fp32 in this device's memory.</param>
    /// <param name="rotary">[batch, query_len] angles; null for no rotation.</param>
    /// <param name="into">All queries of the call, in order.</param>
    void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into);

    /// <summary>What <see cref="AttentionEdge.Finish"/> makes of a final state, in this device's memory.</summary>
    /// <remarks>The arithmetic is the same, in double precision; a GPU's exp and log may differ by one rounding of the result.</remarks>
    /// <param name="problem">Sinks and query lengths.</param>
    /// <param name="indices">[count] the index of each query in its sequence; the array does not change.</param>
    /// <param name="state">Rows batch × query_heads × count.</param>
    /// <param name="output">[batch, count, query_heads, value_dim] fp32.</param>
    /// <param name="lse">[batch, query_heads, count] fp32, in the base of the options, sinks included.</param>
    /// <exception cref="ShapeMismatchException">State, output or lse are not of these sizes.</exception>
    void Finish(AttentionProblem problem, int[] indices, PartialAttention state, Region output, Region lse) =>
        AttentionEdge.Finish(problem, indices, state, output.AsSpan<float>(), lse.AsSpan<float>());

    /// <summary>Converts f16 or bf16 elements to f32, or f32 elements to those, rounded to nearest even; all in this device's memory.</summary>
    /// <exception cref="ArgumentException">The regions have not the same number of elements.</exception>
    void Convert(Region from, Region to)
    {
        if (to.Type == ElementType.Float32)
        {
            ElementConversion.ToFloat(from.AsSpan<byte>(), from.Type, to.AsSpan<float>());
        }
        else
        {
            ElementConversion.FromFloat(from.AsSpan<float>(), to.Type, to.AsSpan<byte>());
        }
    }

    /// <summary>Returns when all enqueued work is done.</summary>
    void Synchronize();
}

/// <summary>A device whose memory the host must not touch: it gives page-locked memory, through which transports stage what they move.</summary>
internal interface IStagingDevice : IDevice
{
    /// <summary>Allocates page-locked host memory; its contents are anything. It counts in no account of the device.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    Region AllocatePinned(long bytes, ElementType type);

    /// <summary>Frees memory that <see cref="AllocatePinned"/> gave, after the enqueued work.</summary>
    void FreePinned(Region region);
}
