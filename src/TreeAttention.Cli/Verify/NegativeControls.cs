using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Verify;

/// <summary>Wrong results, which the comparison that judges all others must reject; some are computed wrongly by the group, some are spoiled afterwards.</summary>
internal sealed class NegativeControls(AttentionGroup group, int seed)
{
    private const int HeadDim = 16;
    private const int ValueDim = 12;
    private const int Heads = 4;

    // As many queries as keys: the first rows see few keys, where a wrong one weighs much. Each rank has a key.
    private static readonly AttentionOptions _options = new() { Causal = true, Sinks = [0.5f, -1, 1, 0] };

    private static readonly float[] _slopes = [0.5f, 1, -0.5f, 2];

    private readonly AttentionShape _shape = ShapeFor(group.Size);

    /// <summary>Each wrong result and whether it was noticed on rank 0; the first is right, and noticed means that it was accepted.</summary>
    /// <param name="type">Storage type of keys and values, by which the comparison's bounds differ.</param>
    public IReadOnlyList<(string Name, bool Holds)> Try(ElementType type)
    {
        using var right = new CaseRun(group, CaseOf(_shape, _options, type));
        VerificationRows? rows = right.Expected();
        AttentionResult? result = ResultOf(right);
        bool IsWrong(AttentionResult? other) => other is null || rows!.Check(other.Output, other.Lse).Wrong > 0;
        bool Notices(Action<AttentionResult> spoil)
        {
            AttentionResult? spoiled = result?.Copy();
            if (spoiled is not null)
            {
                spoil(spoiled);
            }

            return IsWrong(spoiled);
        }

        return
        [
            ("accepts the right result", result is null || !IsWrong(result)),
            ("notices a dropped shard", IsWrong(Compute(WithoutShard(group.Size / 2), type))),
            ("notices a causal off-by-one", IsWrong(Compute(_options with { Causal = false, WindowRight = 1 }, type))),
            ("notices a forgotten scale", IsWrong(Compute(_options with { Scale = 1 }, type))),
            ("notices a sink counted twice", IsWrong(Compute(_options with { Sinks = [.. _options.Sinks!.Select(sink => sink + MathF.Log(2))] }, type))),
            ("notices forgotten left padding", IsNoticed(_shape, _options with { KeyStarts = [4, 11] }, _options, type)),
            ("notices forgotten chunks", IsNoticed(_shape, _options with { LocalChunk = 5 }, _options, type)),
            ("notices chunks of one key more", IsNoticed(_shape, _options with { LocalChunk = 5 }, _options with { LocalChunk = 6 }, type)),
            ("notices packed sequences in one", IsNoticed(_shape with { Batch = 1 }, Packed(), _options, type)),
            ("notices tree nodes in a row", IsNoticed(_shape, Tree(), Tree() with { QueryDepths = null }, type)),
            ("notices a tree that sees siblings", IsNoticed(_shape, Tree(), Tree() with { TailMask = null }, type)),
            ("notices zeros", Notices(spoiled => Array.Clear(spoiled.Output))),
            ("notices swapped heads", Notices(SwapHeads)),
            ("notices a base-2 lse", Notices(spoiled => Change(spoiled.Lse, lse => lse / MathF.Log(2)))),
            ("notices a row of NaN", Notices(spoiled => spoiled.Output.AsSpan(5 * ValueDim, ValueDim).Fill(float.NaN))),
            .. type == ElementType.Float32
                ? [("notices an lse of half precision", Notices(spoiled => Change(spoiled.Lse, lse => (float)(Half)lse)))]
                : ReadOnlySpan<(string, bool)>.Empty,
        ];
    }

    private static AttentionShape ShapeFor(int ranks)
    {
        int length = Math.Max(37, (2 * ranks) + 1);
        return new AttentionShape(2, length, length, Heads, 2, HeadDim, ValueDim);
    }

    private static void Change(float[] numbers, Func<float, float> change)
    {
        for (int i = 0; i < numbers.Length; i++)
        {
            numbers[i] = change(numbers[i]);
        }
    }

    // output [batch, query_len, heads, value_dim], lse [batch, heads, query_len]
    private void SwapHeads(AttentionResult result)
    {
        for (int token = 0; token < _shape.Batch * _shape.QueryLength; token++)
        {
            Swap(result.Output.AsSpan(token * Heads * ValueDim), ValueDim);
        }

        for (int batch = 0; batch < _shape.Batch; batch++)
        {
            Swap(result.Lse.AsSpan(batch * Heads * _shape.QueryLength), _shape.QueryLength);
        }
    }

    private static void Swap(Span<float> heads, int length)
    {
        float[] first = heads[..length].ToArray();
        heads.Slice(length, length).CopyTo(heads);
        first.CopyTo(heads[length..]);
    }

    // The keys of a rank's shard, hidden by a tail mask as long as the keys: what the others would give without it.
    private AttentionOptions WithoutShard(int rank)
    {
        bool[] kept = [.. Enumerable.Repeat(true, _shape.KeyLength)];
        foreach (KeyRun run in ShardLayout.Contiguous.RunsOf(rank, group.Size, _shape.KeyLength))
        {
            for (int i = 0; i < run.Count; i++)
            {
                kept[run.PositionAt(i)] = false;
            }
        }

        bool[] mask = [.. Enumerable.Repeat(kept, _shape.Batch * _shape.QueryLength).SelectMany(row => row)];
        return _options with { TailMask = mask, TailMaskLength = _shape.KeyLength };
    }

    // The first sequence is short, so that the second sees keys of both where bounds are forgotten.
    private AttentionOptions Packed()
    {
        int[] bounds = [0, 9, _shape.KeyLength];
        return _options with { PackedQueries = bounds, PackedKeys = bounds };
    }

    // Each node has two children: nodes 2n + 1 and 2n + 2 continue node n. All keys are nodes.
    private AttentionOptions Tree()
    {
        int nodes = _shape.QueryLength;
        bool[] sees = new bool[nodes * nodes];
        int[] depths = new int[nodes];
        for (int node = 0; node < nodes; node++)
        {
            for (int seen = node; seen >= 0; seen = seen == 0 ? -1 : (seen - 1) / 2)
            {
                sees[(node * nodes) + seen] = true;
                depths[node] += seen == 0 ? 0 : 1;
            }
        }

        return new AttentionOptions
        {
            Causal = true,
            AlibiSlopes = _slopes,
            QueryDepths = depths,
            TailMask = [.. Enumerable.Repeat(sees, _shape.Batch).SelectMany(row => row)],
            TailMaskLength = nodes,
        };
    }

    // The result of other options than a call has.
    private bool IsNoticed(AttentionShape shape, AttentionOptions right, AttentionOptions wrong, ElementType type)
    {
        using var run = new CaseRun(group, CaseOf(shape, right, type));
        VerificationRows? rows = run.Expected();
        AttentionResult? result = Compute(shape, wrong, type);
        return result is null || rows!.Check(result.Output, result.Lse).Wrong > 0;
    }

    private AttentionResult? Compute(AttentionOptions options, ElementType type) => Compute(_shape, options, type);

    private AttentionResult? Compute(AttentionShape shape, AttentionOptions options, ElementType type)
    {
        using var run = new CaseRun(group, CaseOf(shape, options, type));
        return ResultOf(run);
    }

    private static AttentionResult? ResultOf(CaseRun run) => run.Results(run.Run()) is [AttentionResult result, ..] ? result : null;

    private VerifyCase CaseOf(AttentionShape shape, AttentionOptions options, ElementType type)
    {
        var plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Butterfly, QueryPlacement.Replicated);
        return new VerifyCase(
            seed, new AttentionProblem(shape, options), type, ValuesInKeys: false, new VerifyPlan("control", plan), ShardLayout.Contiguous);
    }
}
