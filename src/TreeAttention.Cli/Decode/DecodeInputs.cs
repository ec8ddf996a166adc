using System;
using System.Collections.Generic;
using TreeAttention.Cli.Arguments;
using TreeAttention.Runtime.Measurement;

namespace TreeAttention.Cli.Decode;

/// <summary>What <c>treeattn decode</c> reads: the prompt's keys and values, then the tokens and queries of each step; from files, or made.</summary>
internal sealed class DecodeInputs : IDisposable
{
    private readonly InputTensors? _files;
    private readonly SyntheticTensors? _synthetic;

    /// <summary>Opens the files, or prepares to make the numbers.</summary>
    /// <exception cref="FaultException">A file is missing or bad (66, 65); context and steps do not fit the files (65).</exception>
    public DecodeInputs(DecodeRequest request)
    {
        int queryLength = request.QueryLength;
        if (request.Tensors is not { } tensors)
        {
            (Context, Steps) = (request.Context!.Value, request.Steps!.Value);
            (int added, int all) = Lengths();
            Shape = new AttentionShape(request.Batch, added, all, request.Heads, request.KvHeads, request.HeadDim, request.ValueDim);
            RequireSizes(request.Rotary);
            Scales = request.Scales.Read(request.StorageType, request.KvHeads);
            _synthetic = new SyntheticTensors(Shape with { QueryLength = 0 }, Seeds.Default);
            StorageType = request.StorageType;
            FirstQuery = request.Prefill is null ? 0 : Context;
            return;
        }

        _files = new InputTensors(tensors);
        AttentionShape files = _files.Shape;
        (Context, Steps) = request.Prefill is null ? Split(request, files) : SplitPrefilled(request, files);
        (int queries, int keys) = Lengths();
        FirstQuery = request.Prefill is null ? 0 : Context;
        if (queries == 0)
        {
            _files.Dispose();
            throw new FaultException(
                FaultCode.BadInput, $"The query file has {files.QueryLength} queries, too few for one step of {queryLength} tokens. Give a smaller --query-len.");
        }

        if (FirstQuery + queries > files.QueryLength || keys > files.KeyLength)
        {
            _files.Dispose();
            throw new FaultException(
                FaultCode.BadInput,
                $"{Steps} steps of {queryLength} tokens behind {Context} keys take {FirstQuery + queries} queries and {keys} keys, but the files have "
                + $"{files.QueryLength} and {files.KeyLength}. Give fewer --steps or another --context"
                + (request.Prefill is null ? "." : "; --prefill needs the queries of the context too."));
        }

        Shape = files with { QueryLength = queries, KeyLength = keys };
        (StorageType, Scales, ValuesInKeys) = (_files.StorageType, _files.Scales, tensors.ValueFromKey is not null);

        (int, int) Lengths()
        {
            long added = (long)Steps * queryLength;
            return added + Context <= int.MaxValue
                ? ((int)added, (int)(added + Context))
                : throw new FaultException(
                    FaultCode.CommandLine, $"{Context} keys and {Steps} steps of {queryLength} are more than {int.MaxValue} positions.");
        }
    }

    /// <summary>Sizes of the whole: its queries are those of all steps, its keys those after the last step.</summary>
    public AttentionShape Shape { get; }

    /// <summary>Keys before the first step.</summary>
    public int Context { get; }

    /// <summary>Steps.</summary>
    public int Steps { get; }

    /// <summary>Storage of keys and values.</summary>
    public ElementType StorageType { get; }

    /// <summary>Scales of storage that has some; null: 1.</summary>
    public KeyValueScales? Scales { get; private set; }

    /// <summary>Values are the first elements of the keys.</summary>
    public bool ValuesInKeys { get; }

    /// <summary>Where the numbers are from, which ranks compare before work.</summary>
    public IEnumerable<KeyValuePair<string, string>> Settings => _files?.Settings ?? [new("input", "synthetic")];

    /// <summary>Number of the first step's first query: those of the context come before it where they are attended with.</summary>
    public int FirstQuery { get; }

    /// <summary>Sizes of all that is attended with, in the order of its results.</summary>
    public AttentionShape Results => Shape with { QueryLength = FirstQuery + Shape.QueryLength };

    /// <summary>Finds the scales that follow from the numbers: those of the context, which every later token then has to fit. Every rank calls it.</summary>
    /// <exception cref="FaultException">There is no context (2), or a number of it is not finite (65).</exception>
    public void SettleScales(AttentionGroup group, DecodeRequest request)
    {
        group.Together(() =>
        {
            if (Context == 0 && (request.Tensors?.Scales ?? request.Scales).IsAuto)
            {
                throw new FaultException(
                    FaultCode.CommandLine, "--key-scale auto and --value-scale auto measure the context, and there is none. Give a --context, or the scales.");
            }
        });
        if (_files is not null)
        {
            _files.SettleScales(group, request.Rotary, Context);
            Scales = _files.Scales;
            return;
        }

        var sizes = new CacheOptions
        {
            Rows = Shape.Batch,
            KvHeads = Shape.KvHeads,
            HeadDim = Shape.HeadDim,
            ValueDim = Shape.ValueDim,
            MaxLength = Shape.KeyLength,
            Rotary = request.Rotary,
        };
        Scales = AutoScales.Settle(group, request.Scales, Scales, StorageType, sizes, Context, _ => _synthetic!);
    }

    /// <summary>The queries, read by their numbers as keys are.</summary>
    public ITokenSource QueriesFor(CacheOptions options) => _synthetic is not null
        ? new MadeQueries(_synthetic)
        : new TensorTokens(_files!.Query, null, options with { Type = ElementType.Float32, Scales = null });

    /// <summary>The tokens of the prompt and of the steps.</summary>
    public ITokenSource TokensFor(CacheOptions options) => _synthetic is not null
        ? _synthetic
        : new TensorTokens(_files!.Key, ValuesInKeys ? null : _files.Value, options);

    /// <summary>Query heads that results are compared of: the first, and how many.</summary>
    public (int First, int Count) ComparedHeads => _files is not null ? (0, Shape.QueryHeads) : (ComparedKvHead * Shape.GroupSize, Shape.GroupSize);

    private int ComparedKvHead => Shape.KvHeads / 2;

    /// <summary>What results are held against: all heads of files, one KV head of synthetic numbers, which is made again for it.</summary>
    public DecodeReference OpenReference(RotaryOptions? rotary, int queryLength)
    {
        if (_files is not null)
        {
            return new DecodeReference(Shape, 0, rotary, StorageType, Scales, Context, FirstQuery, queryLength, _files.Query, _files.Key, _files.Value, null);
        }

        int kvHead = ComparedKvHead;
        var head = SyntheticTensors.OneHead(Results, Seeds.Default, kvHead);
        return new DecodeReference(
            Shape with { QueryHeads = Shape.GroupSize, KvHeads = 1 }, ComparedHeads.First, rotary, StorageType, Scales?.OfHead(kvHead), Context,
            FirstQuery, queryLength, head.Query, head.Key, head.Value, head);
    }

    // As many steps as there are queries, behind the keys that these leave.
    private static (int Context, int Steps) Split(DecodeRequest request, AttentionShape files)
    {
        int steps = request.Steps ?? (files.QueryLength / request.QueryLength);
        return (request.Context ?? (int)Math.Max(0, files.KeyLength - ((long)steps * request.QueryLength)), steps);
    }

    // Every key has its query: what is not said is what the other leaves, and one step when neither is.
    private static (int Context, int Steps) SplitPrefilled(DecodeRequest request, AttentionShape files)
    {
        int all = Math.Min(files.KeyLength, files.QueryLength);
        int steps = request.Steps ?? (request.Context is { } given ? Math.Max(1, (all - given) / request.QueryLength) : 1);
        return (request.Context ?? (int)Math.Max(0, all - ((long)steps * request.QueryLength)), steps);
    }

    // Sizes of synthetic numbers are the command line's own: no file is to blame.
    private void RequireSizes(RotaryOptions? rotary)
    {
        try
        {
            Shape.Validate();
            rotary?.Validate(Shape.HeadDim);
        }
        catch (ShapeMismatchException error)
        {
            throw new FaultException(FaultCode.CommandLine, error.Message, error);
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _files?.Dispose();
        _synthetic?.Dispose();
    }

    private sealed class MadeQueries(SyntheticTensors tensors) : ITokenSource
    {
        public void Read(int row, int position, Span<float> key, Span<float> value) => tensors.ReadQuery(row, position, key);
    }
}
