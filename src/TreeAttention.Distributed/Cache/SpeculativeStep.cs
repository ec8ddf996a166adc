using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;

namespace TreeAttention;

/// <summary>Verifies token trees over a cache: appends their nodes, attends with each node to the cache and its ancestors, then keeps a path or nothing.</summary>
/// <remarks>
/// Nodes stand at their depth behind the first for rotary, causal, window, chunks and ALiBi, so each gets what it would get as the next token
/// after its own branch. After every layer ran, the group's Commit or Reject says of each row which nodes stay. Calls
/// are the same on every rank. Another tree of other branches needs another step; the cache is the same.
/// </remarks>
public sealed class SpeculativeStep : IDisposable, IGroupStep<LayerCall>, IGroupStep<DeviceLayerCall>, IGroupStep<DecisionCall>
{
    private readonly RankContext _context;
    private readonly ShardedKvCache _cache;
    private readonly IReadOnlyList<TokenTree> _trees;
    private readonly int[] _rows;
    private readonly int[] _before; // [batch] tokens before the tree; -1 when the row has no tree to decide on
    private readonly int[] _lengths; // [batch] scratch
    private readonly DecodeStep _step;

    /// <summary>Prepares a step. Every rank calls it with the same trees.</summary>
    /// <param name="context">The rank, as the cache was made with it.</param>
    /// <param name="cache">The cache; it must outlive the step.</param>
    /// <param name="options">As for <see cref="DecodeStep"/>; the query length is the trees' number of nodes, and tails are the trees' own.</param>
    /// <param name="trees">One tree for all batch rows, or one for each, of the same number of nodes.</param>
    /// <exception cref="ShapeMismatchException">Trees and options do not fit.</exception>
    /// <exception cref="FaultException">As <see cref="DecodeStep"/>.</exception>
    internal SpeculativeStep(RankContext context, ShardedKvCache cache, DecodeOptions options, params IReadOnlyList<TokenTree> trees)
    {
        _rows = options.Rows ?? [.. Enumerable.Range(0, cache.Options.Rows)];
        (_context, _cache, _trees) = (context, cache, trees);
        Tenancy = new Tenancy(context.Door, nameof(SpeculativeStep), Close);
        _before = new int[_rows.Length];
        Array.Fill(_before, -1);
        _lengths = new int[_rows.Length];
        int nodes = trees.Count == 0 ? 0 : trees[0].Count;
        _step = new DecodeStep(context, cache, options with
        {
            QueryLength = nodes,
            Attention = TokenTreeMask.Apply(options.Attention, _rows.Length, nodes, trees),
        });
    }

    /// <inheritdoc/>
    StepTimes IGroupStep.Times => _step.Times;

    /// <summary>Nodes of each tree.</summary>
    public int Nodes => _step.Problem.Shape.QueryLength;

    /// <summary>What a step does: <c>trees of 8 nodes: 8 queries of each of 2 rows, ...</c>.</summary>
    public override string ToString() => $"{(_trees.Count == 1 ? "a tree" : "trees")} of {Nodes} nodes: {_step}";

    /// <summary>Appends the nodes to a layer and attends with each.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, nodes, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[batch, nodes, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[batch, nodes, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[batch, nodes, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, nodes]</param>
    /// <exception cref="InvalidOperationException">The layer holds nodes already on which nobody has decided.</exception>
    /// <inheritdoc cref="DecodeStep.Run(int, ReadOnlySpan{float}, ReadOnlySpan{float}, ReadOnlySpan{float}, Span{float}, Span{float})" path="/exception"/>
    internal void Run(
        int layer, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output, Span<float> lse)
    {
        _cache.Rows.RequireLayer(layer);
        int[] lengths = LengthsBefore(layer);
        _step.Run(layer, query, key, value, output, lse);
        lengths.CopyTo(_before, 0);
    }

    /// <summary>The same over tensors in the device's memory, as <see cref="DecodeStep.Run(int, DeviceTensor, DeviceTensor, DeviceTensor, DeviceTensor, DeviceTensor, nint)"/>.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[batch, nodes, query_heads, head_dim], not rotated.</param>
    /// <param name="key">[batch, nodes, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[batch, nodes, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="output">[batch, nodes, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, nodes], f32.</param>
    /// <param name="stream">A CUDA stream of the GPU's primary context, 0 for its default stream; 0 on a CPU.</param>
    /// <exception cref="InvalidOperationException">The layer holds nodes already on which nobody has decided.</exception>
    internal void Run(int layer, DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output, DeviceTensor lse, nint stream)
    {
        _cache.Rows.RequireLayer(layer);
        int[] lengths = LengthsBefore(layer);
        _step.Run(layer, query, key, value, output, lse, stream);
        lengths.CopyTo(_before, 0);
    }

    /// <summary>Keeps the nodes of an accepted path, as if they alone had been appended, and drops the others.</summary>
    /// <param name="batch">The batch row.</param>
    /// <param name="path">The nodes from a root on, each a child of the one before; also none.</param>
    /// <exception cref="InvalidOperationException">The row has no tree, or not in every layer.</exception>
    /// <exception cref="ArgumentException">The nodes are no path.</exception>
    internal void Commit(int batch, ReadOnlySpan<int> path)
    {
        int before = Decide(batch, path);
        _cache.Keep(_rows[batch], before, path);
        _before[batch] = -1;
    }

    /// <summary>Drops all nodes of a row.</summary>
    /// <exception cref="InvalidOperationException">The row has no tree, or not in every layer.</exception>
    internal void Reject(int batch) => Commit(batch, []);

    /// <summary>The step's life.</summary>
    internal Tenancy Tenancy { get; }

    /// <inheritdoc/>
    RankContext IGroupStep.Context => _context;

    /// <inheritdoc/>
    long IGroupStep.TokensTaken => _cache.Rows.Taken;

    /// <inheritdoc/>
    void IGroupStep.RequireUsable()
    {
        Tenancy.RequireLiving();
        _cache.RequireUsable();
    }

    /// <inheritdoc/>
    void IGroupStep<LayerCall>.Run(LayerCall call) => Run(call.Layer, call.Query, call.Key, call.Value, call.Output, call.Lse);

    /// <inheritdoc/>
    void IGroupStep<DeviceLayerCall>.Run(DeviceLayerCall call) =>
        Run(call.Layer, call.Query, call.Key, call.Value, call.Output, call.Lse, call.Stream);

    /// <inheritdoc/>
    void IGroupStep<DecisionCall>.Run(DecisionCall call) => Commit(call.Batch, call.Path);

    /// <inheritdoc cref="DecodeStep.Dispose"/>
    public void Dispose() => Tenancy.End();

    private void Close() => _step.Close();

    private int[] LengthsBefore(int layer)
    {
        for (int batch = 0; batch < _rows.Length; batch++)
        {
            if (_before[batch] >= 0 && _before[batch] != _cache.Rows.LengthOf(layer, _rows[batch]))
            {
                throw new InvalidOperationException(
                    $"Layer {layer} has {_cache.Rows.LengthOf(layer, _rows[batch])} tokens in row {_rows[batch]}, not the {_before[batch]} before the tree: "
                    + "commit or reject the tree first.");
            }
        }

        for (int batch = 0; batch < _rows.Length; batch++)
        {
            _lengths[batch] = _cache.Rows.LengthOf(layer, _rows[batch]);
        }

        return _lengths;
    }

    private int Decide(int batch, ReadOnlySpan<int> path)
    {
        if ((uint)batch >= (uint)_rows.Length)
        {
            throw new ArgumentOutOfRangeException(nameof(batch), batch, $"The step has the batch rows 0 to {_rows.Length - 1}.");
        }

        int before = _before[batch];
        for (int layer = 0; layer < _cache.Options.Layers; layer++)
        {
            if (before < 0 || _cache.Rows.LengthOf(layer, _rows[batch]) != before + Nodes)
            {
                throw new InvalidOperationException($"Row {_rows[batch]} has no tree of {Nodes} nodes in layer {layer} to decide on: run every layer first.");
            }
        }

        TokenTree tree = _trees[_trees.Count == 1 ? 0 : batch];
        for (int i = 0; i < path.Length; i++)
        {
            if (path[i] < 0 || path[i] >= tree.Count || tree.Parents[path[i]] != (i == 0 ? -1 : path[i - 1]))
            {
                throw new ArgumentException($"Node {path[i]} does not continue the path: it must run from a root, each node a child of the one before.", nameof(path));
            }
        }

        return before;
    }
}
