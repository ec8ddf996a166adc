using System;
using System.Diagnostics;
using System.Threading;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Steps;
using TreeAttention.Runtime.Groups;

namespace TreeAttention;

/// <content>What a group runs: every kind of step goes through one door, so that faults and cancellation are watched.</content>
public sealed partial class AttentionGroup
{
    /// <summary>Takes prompts into a layer of a cache, and attends with each of their tokens to those up to it. Decoding then goes on over the same cache.</summary>
    /// <param name="prefill">From <see cref="CreatePrefill"/>; its tokens are the ones that this rank gives and gets.</param>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[tokens, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[tokens, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[tokens, query_heads, value_dim]</param>
    /// <param name="lse">[query_heads, tokens], in the base of the options, sinks included.</param>
    /// <param name="cancellation">As for <see cref="Decode(DecodeStep, int, ReadOnlySpan{float}, ReadOnlySpan{float}, ReadOnlySpan{float}, Span{float}, Span{float}, CancellationToken)"/>.</param>
    /// <exception cref="ArgumentException">The step is of another group.</exception>
    /// <exception cref="FaultException">The cache is full (71) or a number must not be used (65), on every rank alike; or a rank failed.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public void Prefill(
        PrefillStep prefill, int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output,
        Span<float> lse, CancellationToken cancellation = default) =>
        Run(nameof(Prefill), prefill, new LayerCall { Layer = layer, Query = query, Key = key, Value = value, Output = output, Lse = lse }, cancellation);

    /// <summary>One decode step: appends new tokens to a layer, attends to all that it then holds, and has the exact result on every rank.</summary>
    /// <param name="step">From <see cref="CreateStep"/>.</param>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[batch, tokens, kv_heads, head_dim], not rotated; any number of tokens, also none.</param>
    /// <param name="value">[batch, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len], in the base of the options, sinks included.</param>
    /// <param name="cancellation">
    /// Before the step it just throws. Within the step, when ranks may already wait for this one, it ends the group: in-process ranks
    /// throw, an MPI job ends with 130. Cancel all ranks alike, between steps.
    /// </param>
    /// <exception cref="ArgumentException">The step is of another group.</exception>
    /// <exception cref="ShapeMismatchException">A tensor is of another size.</exception>
    /// <exception cref="FaultException">The cache is full (71) or a number must not be used (65), on every rank alike; or a rank failed.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public void Decode(
        DecodeStep step, int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output, Span<float> lse,
        CancellationToken cancellation = default) =>
        Run(nameof(Decode), step, new LayerCall { Layer = layer, Query = query, Key = key, Value = value, Output = output, Lse = lse }, cancellation);

    /// <summary>The same over tensors in the memory of this rank's device, in the order of a stream of the caller's.</summary>
    /// <remarks>
    /// On a GPU the work begins when what the stream holds is done, what the stream gets afterwards begins when the result is there, and
    /// the host does not wait (where NCCL connects the ranks; a transport of host memory waits in its reduction). The device's own
    /// context, the primary one, is the calling thread's afterwards. On a CPU the addresses are the process's and the work is done at return.
    /// </remarks>
    /// <param name="step">From <see cref="CreateStep"/>.</param>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[batch, tokens, kv_heads, head_dim], not rotated; any number of tokens, also none.</param>
    /// <param name="value">[batch, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len], f32, in the base of the options, sinks included.</param>
    /// <param name="stream">A CUDA stream (CUstream, cudaStream_t) of the GPU's primary context, 0 for its default stream; 0 on a CPU.</param>
    /// <param name="cancellation">As above; it does not reach work that is enqueued.</param>
    /// <exception cref="ArgumentException">The step is of another group, or a CPU is given a stream.</exception>
    /// <exception cref="ShapeMismatchException">A tensor is of another size or type.</exception>
    /// <exception cref="FaultException">The cache is full (71), on every rank alike; or a rank or the GPU failed, which may show in a later call.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public void Decode(
        DecodeStep step, int layer, DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output, DeviceTensor lse, nint stream = 0,
        CancellationToken cancellation = default) =>
        Run(
            nameof(Decode), step,
            new DeviceLayerCall { Layer = layer, Query = query, Key = key, Value = value, Output = output, Lse = lse, Stream = stream }, cancellation);

    /// <summary>Attends to what a layer holds and appends nothing: the last keys are those of the queries' own tokens.</summary>
    /// <param name="step">From <see cref="CreateStep"/>.</param>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim], not rotated.</param>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len], in the base of the options, sinks included.</param>
    /// <param name="cancellation">As for <see cref="Decode(DecodeStep, int, ReadOnlySpan{float}, ReadOnlySpan{float}, ReadOnlySpan{float}, Span{float}, Span{float}, CancellationToken)"/>.</param>
    /// <exception cref="ArgumentException">The step is of another group.</exception>
    /// <exception cref="ShapeMismatchException">A tensor is of another size.</exception>
    /// <exception cref="FaultException">A number must not be used (65), on every rank alike; or a rank failed.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public void Attend(
        DecodeStep step, int layer, ReadOnlySpan<float> query, Span<float> output, Span<float> lse, CancellationToken cancellation = default) =>
        Run(nameof(Attend), step, new LookCall { Layer = layer, Query = query, Output = output, Lse = lse }, cancellation);

    /// <summary>Attention without a cache: every rank gives its own keys and values, and gets the exact result over those of all ranks.</summary>
    /// <remarks>
    /// Everything is laid out, attended to and freed in this one call, by the steps that the plan names. Every rank gives the same queries
    /// and options; where they differ, all throw. Whoever attends again and again to keys that grow has a <see cref="ShardedKvCache"/>.
    /// </remarks>
    /// <param name="query">[batch, query_len, query_heads, head_dim], the same on every rank.</param>
    /// <param name="key">[batch, keys of this rank, kv_heads, head_dim]; any number of keys, also none.</param>
    /// <param name="value">[batch, keys of this rank, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="options">Sizes, meaning of attention, layout of the keys, plan.</param>
    /// <param name="cancellation">As for <see cref="Decode(DecodeStep, int, ReadOnlySpan{float}, ReadOnlySpan{float}, ReadOnlySpan{float}, Span{float}, Span{float}, CancellationToken)"/>.</param>
    /// <returns>[batch, query_len, query_heads, value_dim], and the lse as <see cref="AttentionOptions.LseBase"/> [batch, query_heads, query_len].</returns>
    /// <exception cref="ArgumentException">The plan is single, where one rank has all keys, and the group has several ranks.</exception>
    /// <exception cref="FaultException">
    /// On every rank alike: a tensor is of another size or a number must not be used (65), the options contradict themselves (2, 65), ranks
    /// disagree (78), memory is short (71). Or a rank failed.
    /// </exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public (float[] Output, float[] Lse) Attend(
        ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, AttendOptions options, CancellationToken cancellation = default)
    {
        RequireWhole(options);
        if (options.Plan.Algorithm == AttentionAlgorithm.Single && Size > 1)
        {
            throw new ArgumentException(
                $"The plan is single, where one rank has all keys, but the keys lie on {Size} ranks: take tree or a ring.", nameof(options));
        }

        var attention = new OneShotAttention(this, options);
        Run(nameof(Attend), attention, new ShardCall { Query = query, Key = key, Value = value }, cancellation);
        return (attention.Output, attention.Lse);
    }

    /// <summary>Appends the nodes of token trees to a layer, and attends with each of them to the cache and its ancestors.</summary>
    /// <remarks>After every layer ran, <see cref="Commit"/> or <see cref="Reject"/> says of each row which nodes stay.</remarks>
    /// <param name="step">From <see cref="CreateSpeculativeStep"/>.</param>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, nodes, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[batch, nodes, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[batch, nodes, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[batch, nodes, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, nodes], in the base of the options, sinks included.</param>
    /// <param name="cancellation">As for <see cref="Decode(DecodeStep, int, ReadOnlySpan{float}, ReadOnlySpan{float}, ReadOnlySpan{float}, Span{float}, Span{float}, CancellationToken)"/>.</param>
    /// <exception cref="ArgumentException">The step is of another group.</exception>
    /// <exception cref="InvalidOperationException">The layer holds nodes already on which nobody has decided.</exception>
    /// <exception cref="ShapeMismatchException">A tensor is of another size.</exception>
    /// <exception cref="FaultException">The cache is full (71) or a number must not be used (65), on every rank alike; or a rank failed.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public void Speculate(
        SpeculativeStep step, int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output,
        Span<float> lse, CancellationToken cancellation = default) =>
        Run(nameof(Speculate), step, new LayerCall { Layer = layer, Query = query, Key = key, Value = value, Output = output, Lse = lse }, cancellation);

    /// <summary>The same over tensors in the memory of this rank's device, in the order of a stream of the caller's, as decode steps have them.</summary>
    /// <param name="step">From <see cref="CreateSpeculativeStep"/>.</param>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, nodes, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[batch, nodes, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[batch, nodes, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[batch, nodes, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, nodes], f32, in the base of the options, sinks included.</param>
    /// <param name="stream">A CUDA stream (CUstream, cudaStream_t) of the GPU's primary context, 0 for its default stream; 0 on a CPU.</param>
    /// <param name="cancellation">As above; it does not reach work that is enqueued.</param>
    /// <exception cref="ArgumentException">The step is of another group, or a CPU is given a stream.</exception>
    /// <exception cref="InvalidOperationException">The layer holds nodes already on which nobody has decided.</exception>
    /// <exception cref="ShapeMismatchException">A tensor is of another size or type.</exception>
    /// <exception cref="FaultException">The cache is full (71), on every rank alike; or a rank or the GPU failed, which may show in a later call.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public void Speculate(
        SpeculativeStep step, int layer, DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output, DeviceTensor lse,
        nint stream = 0, CancellationToken cancellation = default) =>
        Run(
            nameof(Speculate), step,
            new DeviceLayerCall { Layer = layer, Query = query, Key = key, Value = value, Output = output, Lse = lse, Stream = stream },
            cancellation);

    /// <summary>Keeps the nodes of an accepted path of a row's tree, as if they alone had been appended, and drops the others, in every layer.</summary>
    /// <param name="step">A step that ran in every layer.</param>
    /// <param name="batch">The batch row.</param>
    /// <param name="path">The nodes from the root on, each a child of the one before; also none.</param>
    /// <exception cref="ArgumentException">The step is of another group, or the nodes are no path.</exception>
    /// <exception cref="InvalidOperationException">The row has no tree, or not in every layer.</exception>
    /// <exception cref="FaultException">Pages that the row shares cannot be copied: the cache is full (71), on every rank alike. Or a rank failed.</exception>
    public void Commit(SpeculativeStep step, int batch, params ReadOnlySpan<int> path) =>
        Run(nameof(Commit), step, new DecisionCall { Batch = batch, Path = path }, CancellationToken.None);

    /// <summary>Drops all nodes of a row's tree, in every layer.</summary>
    /// <param name="step">A step that ran in every layer.</param>
    /// <param name="batch">The batch row.</param>
    /// <exception cref="ArgumentException">The step is of another group.</exception>
    /// <exception cref="InvalidOperationException">The row has no tree, or not in every layer.</exception>
    public void Reject(SpeculativeStep step, int batch) => Commit(step, batch);

    // The one door of every step: what a rank alone meets in it ends the group for all.
    private void Run<TCall>(string name, IGroupStep<TCall> step, TCall call, CancellationToken cancellation)
        where TCall : allows ref struct
    {
        using RankDoor.Visit visit = Enter(name);
        ArgumentNullException.ThrowIfNull(step);
        RequireOwn(step.Context, "step", nameof(step));
        step.RequireUsable();
        using CancellationTokenRegistration registration = Watch(cancellation);
        using Activity? activity = GroupMetrics.Begin(name, this);
        bool isMeasured = GroupMetrics.IsMeasured;
        StepCost before = isMeasured ? CostOf(step) : default;
        try
        {
            step.Run(call);
            if (isMeasured)
            {
                GroupMetrics.Count(name, Rank, before, CostOf(step), step.Times);
            }
        }
        catch (Exception error) when (error is not (ArgumentException or InvalidOperationException))
        {
            Note(error);
            cancellation.ThrowIfCancellationRequested();
            throw;
        }
    }

    private StepCost CostOf(IGroupStep step) => new(step.TokensTaken, Traffic.BytesSent, Stopwatch.GetTimestamp());

    private static void RequireWhole(AttendOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(options.Attention, nameof(options));
        ArgumentNullException.ThrowIfNull(options.Plan, nameof(options));
    }

    private CancellationTokenRegistration Watch(CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        return cancellation.UnsafeRegister(
            static group => ((AttentionGroup)group!).Context.Control.Abort(FaultCode.Interrupted, "The work was cancelled."), this);
    }

    // What every rank throws leaves the ranks in step.
    private void Note(Exception error)
    {
        _fault ??= error is FaultException { IsAgreed: true } or FaultException { Code: FaultCode.BadInput } ? null : error;
        _whole?.Note(error);
    }
}
