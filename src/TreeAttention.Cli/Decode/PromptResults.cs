using System;
using System.Collections.Generic;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Prefill;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Decode;

/// <summary>Results of the context's own queries, brought to rank 0: all of them where they are written, else those of the heads that are compared, or none.</summary>
internal sealed class PromptResults
{
    private readonly AttentionGroup _group;
    private readonly (int First, int Count) _heads;
    private readonly (int First, int Count) _compared;
    private readonly int _context;
    private readonly bool _isSharded;
    private readonly AttentionShape _shape; // of what is kept
    private readonly AttentionResult? _kept;

    /// <summary>Makes room on rank 0. Every rank calls it.</summary>
    /// <param name="group">The ranks.</param>
    /// <param name="inputs">Sizes.</param>
    /// <param name="request">Whether results are written or compared, and how the prefill shares them.</param>
    /// <param name="result">Results of context and steps, on rank 0 where they are written.</param>
    public PromptResults(AttentionGroup group, DecodeInputs inputs, DecodeRequest request, AttentionResult? result)
    {
        (_group, _context, _compared, _isSharded) = (group, inputs.Context, inputs.ComparedHeads, request.Prefill != PrefillMethod.Chunked);
        bool isWritten = request.Output is not null || request.Lse is not null;
        _heads = isWritten ? (0, inputs.Shape.QueryHeads) : request.Verify ? _compared : (0, 0);
        _shape = isWritten ? inputs.Results : inputs.Shape with { QueryLength = _context, QueryHeads = _heads.Count };
        _kept = result ?? (group.IsRoot && _heads.Count > 0 ? AttentionResult.Of(_shape) : null);
    }

    /// <summary>Takes the results of a pass. Every rank calls it.</summary>
    /// <param name="step">What gave them.</param>
    /// <param name="first">Position of the pass's first token.</param>
    /// <param name="output">[tokens of this rank, all heads, value_dim]</param>
    /// <param name="lse">[all heads, tokens of this rank]</param>
    public void Take(PrefillStep step, int first, ReadOnlySpan<float> output, ReadOnlySpan<float> lse)
    {
        if (_heads.Count == 0 || (!_isSharded && !_group.IsRoot))
        {
            return;
        }

        using HostMemory mine = Pack(step.Tokens.Count, output, lse);
        if (!_group.IsRoot)
        {
            _group.Context.Transport.Send(mine.Region, 0);
            return;
        }

        Put(step.Tokens, first, mine.Region);
        for (int rank = 1; rank < _group.Size && _isSharded; rank++)
        {
            PromptToken[] tokens = [.. step.TokensOf(rank)];
            using var theirs = new HostMemory(BytesOf(tokens.Length), ElementType.Float32);
            _group.Context.Transport.Receive(theirs.Region, rank);
            Put(tokens, first, theirs.Region);
        }
    }

    /// <summary>Holds what was kept against float64, on rank 0.</summary>
    public VerificationReport Check(DecodeReference reference, AttentionProblem steps)
    {
        AttentionShape part = _shape with { QueryLength = _context, QueryHeads = _compared.Count };
        if (part == _shape)
        {
            return reference.CheckPrefill(steps, _kept!.Output, _kept.Lse);
        }

        var compared = AttentionResult.Of(part);
        for (int i = 0; i < part.Batch * _context; i++)
        {
            (int row, int position) = Math.DivRem(i, _context);
            long place = ((long)row * _shape.QueryLength) + position;
            for (int head = 0; head < part.QueryHeads; head++)
            {
                int from = head + _compared.First - _heads.First;
                Array.Copy(
                    _kept!.Output, ((place * _shape.QueryHeads) + from) * part.ValueDim,
                    compared.Output, (((long)i * part.QueryHeads) + head) * part.ValueDim, part.ValueDim);
                compared.Lse[(((row * part.QueryHeads) + head) * (long)_context) + position] =
                    _kept.Lse[((((long)row * _shape.QueryHeads) + from) * _shape.QueryLength) + position];
            }
        }

        return reference.CheckPrefill(steps, compared.Output, compared.Lse);
    }

    private long BytesOf(int tokens) => (long)tokens * _heads.Count * (_shape.ValueDim + 1) * sizeof(float);

    // [tokens, heads kept, value_dim] and [heads kept, tokens], in memory that the garbage collector leaves in place.
    private HostMemory Pack(int tokens, ReadOnlySpan<float> output, ReadOnlySpan<float> lse)
    {
        var memory = new HostMemory(BytesOf(tokens), ElementType.Float32);
        int all = tokens == 0 ? 0 : lse.Length / tokens;
        int dim = _shape.ValueDim;
        for (int token = 0; token < tokens; token++)
        {
            output.Slice(((token * all) + _heads.First) * dim, _heads.Count * dim)
                .CopyTo(memory.Region.Slice((long)token * _heads.Count * dim, _heads.Count * dim).AsSpan<float>());
        }

        long lines = (long)tokens * _heads.Count;
        lse.Slice(_heads.First * tokens, (int)lines).CopyTo(memory.Region.Slice(lines * dim, lines).AsSpan<float>());
        return memory;
    }

    private void Put(IReadOnlyList<PromptToken> tokens, int first, Region packed)
    {
        (int heads, int dim) = (_heads.Count, _shape.ValueDim);
        long lines = (long)tokens.Count * heads;
        for (int i = 0; i < tokens.Count; i++)
        {
            (int row, int position) = (tokens[i].Row, first + tokens[i].Index);
            long place = ((long)row * _shape.QueryLength) + position;
            packed.Slice((long)i * heads * dim, heads * dim).AsSpan<float>().CopyTo(new Span<float>(_kept!.Output, (int)(place * heads * dim), heads * dim));
            for (int head = 0; head < heads; head++)
            {
                _kept.Lse[((((long)row * heads) + head) * _shape.QueryLength) + position] =
                    packed.Slice((lines * dim) + ((long)head * tokens.Count) + i, 1).AsSpan<float>()[0];
            }
        }
    }
}
