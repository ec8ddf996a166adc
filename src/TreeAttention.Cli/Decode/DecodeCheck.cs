using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Decode;

/// <summary>Float64 attention over what the cache holds at a step, for some heads.</summary>
internal sealed class DecodeReference : IDisposable
{
    private const int Seed = 20261121;

    private readonly AttentionShape _shape;
    private readonly int _firstHead;
    private readonly ElementType _storage;
    private readonly KeyValueScales? _scales;
    private readonly int _context;
    private readonly int _firstQuery;
    private readonly int _queryLength;
    private readonly RotaryOptions? _rotary;
    private readonly TensorView _query;
    private readonly TensorView _key;
    private readonly TensorView _value;
    private readonly HostMemory? _rotatedKey;
    private readonly IDisposable? _tensors;

    /// <summary>Takes the tensors of all steps; keys are rotated here, in double.</summary>
    /// <param name="shape">Sizes of the heads that are compared.</param>
    /// <param name="firstHead">The first of these query heads among all.</param>
    /// <param name="rotary">Rotary embedding, or null.</param>
    /// <param name="storage">What keys and values are stored as.</param>
    /// <param name="scales">Scales of storage that has some of the heads that are compared; 1 when null.</param>
    /// <param name="context">Keys before the first step.</param>
    /// <param name="firstQuery">Number of the first step's first query.</param>
    /// <param name="queryLength">Tokens of a step.</param>
    /// <param name="query">[batch, queries of all steps, or those of the context before them, heads, head_dim]</param>
    /// <param name="key">[batch, keys, kv_heads, head_dim]</param>
    /// <param name="value">[batch, keys, kv_heads, value_dim]</param>
    /// <param name="tensors">Owner of the tensors, disposed of with this; null when somebody else does.</param>
    public DecodeReference(
        AttentionShape shape, int firstHead, RotaryOptions? rotary, ElementType storage, KeyValueScales? scales, int context, int firstQuery, int queryLength,
        TensorView query, TensorView key, TensorView value, IDisposable? tensors)
    {
        (_shape, _firstHead, _rotary, _storage, _scales) = (shape, firstHead, rotary, storage, scales);
        (_context, _firstQuery, _queryLength) = (context, firstQuery, queryLength);
        (_query, _key, _value, _tensors) = (query, key, value, tensors);
        if (rotary is not null)
        {
            _rotatedKey = ReferenceRotary.Rotate(key, rotary, position => position, out _key);
        }
    }

    /// <summary>Compares the result of a step.</summary>
    /// <param name="problem">The step's sizes and options.</param>
    /// <param name="step">Which step, from 0 on.</param>
    /// <param name="output">[batch, query_len, all heads, value_dim]</param>
    /// <param name="lse">[batch, all heads, query_len]</param>
    public VerificationReport Check(AttentionProblem problem, int step, ReadOnlySpan<float> output, ReadOnlySpan<float> lse)
    {
        int first = step * _queryLength;
        int keys = _context + first + _queryLength;
        AttentionShape shape = _shape with { QueryLength = _queryLength, KeyLength = keys };
        AttentionProblem alone = AloneOf(problem, shape);
        bool isAligned = problem.Options.AreQueriesAligned;
        TensorView query = _query.PartOfLength(_firstQuery + first, _queryLength);
        using HostMemory? rotated = _rotary is null ? null
            : ReferenceRotary.Rotate(query, _rotary, i => _context + first + (isAligned ? i : 0), out query);
        return Agreement.Check(
            alone, query, _key.PartOfLength(0, keys), _value.PartOfLength(0, keys), _storage,
            HeadsOf(output, problem.Shape.QueryHeads, shape.ValueDim), LinesOf(lse, problem.Shape), Seed + step, _scales);
    }

    /// <summary>Compares the results of the context's own queries.</summary>
    /// <param name="problem">The steps' sizes and options.</param>
    /// <param name="output">[batch, context, heads that are compared, value_dim]</param>
    /// <param name="lse">[batch, heads that are compared, context]</param>
    public VerificationReport CheckPrefill(AttentionProblem problem, ReadOnlySpan<float> output, ReadOnlySpan<float> lse)
    {
        AttentionProblem alone = AloneOf(problem, _shape with { QueryLength = _context, KeyLength = _context });
        TensorView query = _query.PartOfLength(0, _context);
        using HostMemory? rotated = _rotary is null ? null : ReferenceRotary.Rotate(query, _rotary, i => i, out query);
        return Agreement.Check(
            new AttentionProblem(alone.Shape, alone.Options with { Causal = true }), query, _key.PartOfLength(0, _context), _value.PartOfLength(0, _context),
            _storage, output, lse, Seed, _scales);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _rotatedKey?.Dispose();
        _tensors?.Dispose();
    }

    private AttentionProblem AloneOf(AttentionProblem problem, AttentionShape shape) => new(shape, problem.Options with
    {
        Scale = problem.Scale,
        KeyLengths = null,
        AlibiSlopes = HeadsOf<float>(problem.Options.AlibiSlopes, problem.Shape.QueryHeads, 1),
        Sinks = HeadsOf<float>(problem.Options.Sinks, problem.Shape.QueryHeads, 1),
    });

    // Of arrays whose axis before the last is the heads: those that are compared.
    private T[]? HeadsOf<T>(ReadOnlySpan<T> all, int heads, int dim)
    {
        if (all.Length == 0)
        {
            return null;
        }

        int count = _shape.QueryHeads * dim;
        var part = new T[all.Length / (heads * dim) * count];
        for (int i = 0; i < part.Length / count; i++)
        {
            all.Slice((i * heads * dim) + (_firstHead * dim), count).CopyTo(part.AsSpan(i * count));
        }

        return part;
    }

    private float[] LinesOf(ReadOnlySpan<float> lse, AttentionShape all)
    {
        int count = _shape.QueryHeads * _queryLength;
        float[] part = new float[all.Batch * count];
        for (int batch = 0; batch < all.Batch; batch++)
        {
            lse.Slice(((batch * all.QueryHeads) + _firstHead) * _queryLength, count).CopyTo(part.AsSpan(batch * count));
        }

        return part;
    }
}
