using System;
using System.Collections.Generic;
using TreeAttention.Cli.Output;
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
    /// <param name="result">All heads of this rank's tokens, as the queries of one row.</param>
    public void Take(PrefillStep step, int first, AttentionResult result)
    {
        if (_heads.Count == 0 || (!_isSharded && !_group.IsRoot))
        {
            return;
        }

        AttentionResult mine = result.HeadsOf(_heads.First, _heads.Count);
        if (!_group.IsRoot)
        {
            mine.Move(region => _group.Context.Transport.Send(region, 0));
            return;
        }

        Put(step.Tokens, first, mine);
        for (int rank = 1; rank < _group.Size && _isSharded; rank++)
        {
            PromptToken[] tokens = [.. step.TokensOf(rank)];
            var theirs = new AttentionResult(1, tokens.Length, _heads.Count, _shape.ValueDim);
            int from = rank;
            theirs.Move(region => _group.Context.Transport.Receive(region, from));
            Put(tokens, first, theirs);
        }
    }

    /// <summary>Holds what was kept against float64, on rank 0.</summary>
    public VerificationReport Check(DecodeReference reference, AttentionProblem steps)
    {
        AttentionShape part = _shape with { QueryLength = _context, QueryHeads = _compared.Count };
        if (part == _shape)
        {
            return reference.CheckPrefill(steps, _kept!);
        }

        AttentionResult heads = _kept!.HeadsOf(_compared.First - _heads.First, _compared.Count);
        var compared = AttentionResult.Of(part);
        for (int i = 0; i < part.Batch * _context; i++)
        {
            (int row, int position) = Math.DivRem(i, _context);
            compared.Put(row, position, heads, row, position);
        }

        return reference.CheckPrefill(steps, compared);
    }

    private void Put(IReadOnlyList<PromptToken> tokens, int first, AttentionResult heads)
    {
        for (int i = 0; i < tokens.Count; i++)
        {
            _kept!.Put(tokens[i].Row, first + tokens[i].Index, heads, 0, i);
        }
    }
}
