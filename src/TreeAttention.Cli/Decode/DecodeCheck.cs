using System;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Decode;

/// <summary>Float64 attention over what the cache holds at a step, for some heads.</summary>
internal sealed class DecodeReference : IDisposable
{
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
    /// <param name="result">All heads.</param>
    public VerificationReport Check(AttentionProblem problem, int step, AttentionResult result)
    {
        int first = step * _queryLength;
        int keys = _context + first + _queryLength;
        AttentionShape shape = _shape with { QueryLength = _queryLength, KeyLength = keys };
        AttentionProblem alone = AloneOf(problem, shape);
        bool isAligned = problem.Options.AreQueriesAligned;
        TensorView query = _query.PartOfLength(_firstQuery + first, _queryLength);
        using HostMemory? rotated = _rotary is null ? null
            : ReferenceRotary.Rotate(query, _rotary, i => _context + first + (isAligned ? i : 0), out query);
        AttentionResult heads = result.HeadsOf(_firstHead, _shape.QueryHeads);
        var call = new ReferenceCall(
            shape, alone.Options, query, _key.PartOfLength(0, keys), _value.PartOfLength(0, keys), _storage, _scales);
        return Agreement.Check(call, heads.Output, heads.Lse, Seeds.Default + step);
    }

    /// <summary>Compares the results of the context's own queries.</summary>
    /// <param name="problem">The steps' sizes and options.</param>
    /// <param name="result">The heads that are compared.</param>
    public VerificationReport CheckPrefill(AttentionProblem problem, AttentionResult result)
    {
        AttentionProblem alone = AloneOf(problem, _shape with { QueryLength = _context, KeyLength = _context });
        TensorView query = _query.PartOfLength(0, _context);
        using HostMemory? rotated = _rotary is null ? null : ReferenceRotary.Rotate(query, _rotary, i => i, out query);
        var call = new ReferenceCall(
            alone.Shape, alone.Options with { Causal = true }, query, _key.PartOfLength(0, _context), _value.PartOfLength(0, _context),
            _storage, _scales);
        return Agreement.Check(call, result.Output, result.Lse, Seeds.Default);
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
        AlibiSlopes = HeadsOf(problem.Options.AlibiSlopes, problem.Shape.QueryHeads),
        Sinks = HeadsOf(problem.Options.Sinks, problem.Shape.QueryHeads),
    });

    // Of arrays whose last axis is the heads: those that are compared.
    private float[]? HeadsOf(float[]? all, int heads)
    {
        if (all is null)
        {
            return null;
        }

        int count = _shape.QueryHeads;
        float[] part = new float[all.Length / heads * count];
        for (int i = 0; i < part.Length / count; i++)
        {
            all.AsSpan((i * heads) + _firstHead, count).CopyTo(part.AsSpan(i * count));
        }

        return part;
    }
}
