using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Cli.Arguments;

/// <summary>Queries, keys and values from files, mapped and seen as BSHD whatever their order on disk.</summary>
internal sealed class InputTensors : IDisposable
{
    private readonly TensorFile _query;
    private readonly TensorFile _key;
    private readonly TensorFile? _value;

    private readonly bool _isPacked;
    private readonly TensorRequest _request;

    /// <summary>Maps the files and derives the sizes.</summary>
    /// <param name="request">The files.</param>
    /// <param name="isPacked">The tensors hold packed sequences: the batch axis, of one row, may be missing.</param>
    /// <exception cref="FaultException">A file is missing (66), or bad or of the wrong shape (65).</exception>
    public InputTensors(TensorRequest request, bool isPacked = false)
    {
        _isPacked = isPacked;
        _request = request;
        _query = TensorFile.Open(request.Query!, "query");
        try
        {
            _key = TensorFile.Open(request.Key!, "key");
            _value = request.Value is null ? null : TensorFile.Open(request.Value, "value");
            HasBatchAxis = _query.View.Rank == 4;
            Query = Arranged(_query, request);
            Key = Arranged(_key, request);
            Value = _value is not null ? Arranged(_value, request) : InsideKey(Key, request.ValueFromKey!.Value);
            Shape = ShapeOf(Query, Key, Value);
            StorageType = request.StorageType ?? (Key.Type == ElementType.Float64 ? ElementType.Float32 : Key.Type);
            Scales = request.Scales.Read(StorageType, Shape.KvHeads);
            RequireNumbers(Key, request.Scales.Key);
            RequireNumbers(Value, request.ValueFromKey is null ? request.Scales.Value : request.Scales.Key);
            Key = Scaled(Key, Scales?.Key);
            Value = Scaled(Value, Scales?.Value);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>The queries came with a batch axis, and the output leaves with one.</summary>
    public bool HasBatchAxis { get; }

    /// <summary>[batch, query_len, query_heads, head_dim]</summary>
    public TensorView Query { get; }

    /// <summary>[batch, key_len, kv_heads, head_dim]</summary>
    public TensorView Key { get; }

    /// <summary>[batch, key_len, kv_heads, value_dim]</summary>
    public TensorView Value { get; }

    /// <summary>The sizes that the three tensors agree on.</summary>
    public AttentionShape Shape { get; }

    /// <summary>Storage of keys and values on the device.</summary>
    public ElementType StorageType { get; }

    /// <summary>Scales of storage that has some; null: 1.</summary>
    public KeyValueScales? Scales { get; private set; }

    /// <summary>Finds the scales that follow from the numbers of the first tokens, all when null. Every rank calls it.</summary>
    /// <exception cref="FaultException">A number is not finite (65).</exception>
    public void SettleScales(AttentionGroup group, RotaryOptions? rotary = null, int? tokens = null, PresentTokens? present = null)
    {
        bool inKeys = _request.ValueFromKey is not null;
        var sizes = new CacheOptions
        {
            Rows = Shape.Batch,
            KvHeads = Shape.KvHeads,
            HeadDim = Shape.HeadDim,
            ValueDim = Shape.ValueDim,
            ValuesInKeys = inKeys,
            MaxLength = Shape.KeyLength,
            Rotary = rotary,
            NonFinite = _request.NonFinite,
        };
        Scales = AutoScales.Settle(
            group, _request.Scales, Scales, StorageType, sizes, tokens ?? Shape.KeyLength,
            options => new TensorTokens(Key, inKeys ? null : Value, options), present);
    }

    /// <summary>Types, shapes and contents, which ranks compare before work.</summary>
    public IEnumerable<KeyValuePair<string, string>> Settings =>
    [
        .. from tensor in (IEnumerable<(string Name, TensorView View)>)[("query", Query), ("key", Key), ("value", Value)]
           select KeyValuePair.Create(
               tensor.Name, $"{tensor.View.Type.ShortName()} {tensor.View.ShapeText} with contents {TensorSample.DigestOf(tensor.View)}"),
    ];

    /// <inheritdoc/>
    public void Dispose()
    {
        _query.Dispose();
        _key?.Dispose();
        _value?.Dispose();
    }

    // A file of a type with scales holds stored elements already: they are multiplied by the scales, not divided.
    private TensorView Scaled(TensorView view, float[]? scales) =>
        scales is not null && view.Type == StorageType ? view.WithHeadScales(scales) : view;

    private void RequireNumbers(TensorView view, ScaleRequest? scale)
    {
        if (scale is { IsAuto: true } && view.Type == StorageType)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"A scale of auto measures numbers, but {view.Name} holds {view.Type.ShortName()} elements, which are stored as they are. Give the scale that they were made with.");
        }
    }

    private TensorView Arranged(TensorFile file, TensorRequest request)
    {
        TensorView view = file.View;
        bool isNumber = ReferenceEquals(file, _query) ? view.Type.IsFloatingPoint() : view.Type.Entry().Widen is not null;
        if (!isNumber)
        {
            throw new FaultException(
                FaultCode.BadInput, $"{view.Name} holds {view.Type.ShortName()} elements, but attention needs f16, bf16, f32, f64 or f8e4m3, or i8 for keys and values.");
        }

        if (_isPacked && view.Rank == 3)
        {
            view = view.AddFirstAxis();
        }

        if (view.Rank != 4)
        {
            throw new FaultException(
                FaultCode.BadInput,
                $"{view.Name} has shape {view.ShapeText}, but attention needs four axes: "
                + (request.HeadMajor ? "[batch, heads, length, dim] (--layout bhsd)." : "[batch, length, heads, dim] (--layout bshd).")
                + (_isPacked ? " Packed sequences may leave batch out." : ""));
        }

        return request.HeadMajor ? view.SwapAxes(1, 2) : view;
    }

    private static TensorView InsideKey(TensorView key, int valueDim)
    {
        if (valueDim > key.Shape[3])
        {
            throw new ShapeMismatchException($"--value-from-key {valueDim} is more than the {key.Shape[3]} elements of a key (key is {key.ShapeText}).");
        }

        return key.TruncateLastAxis("value", valueDim);
    }

    private static AttentionShape ShapeOf(TensorView query, TensorView key, TensorView value)
    {
        Require(query.Shape[0] == key.Shape[0], query, key, "batch (axis 0)");
        Require(query.Shape[3] == key.Shape[3], query, key, "head_dim (axis 3)");
        Require(key.Shape[0] == value.Shape[0], key, value, "batch (axis 0)");
        Require(key.Shape[1] == value.Shape[1], key, value, "key_len (the length axis)");
        Require(key.Shape[2] == value.Shape[2], key, value, "kv_heads (the heads axis)");
        foreach (TensorView view in (TensorView[])[query, key, value])
        {
            if (Array.Exists(view.Shape, length => length > int.MaxValue))
            {
                throw new ShapeMismatchException($"{view.Name} is {view.ShapeText}: no axis may be longer than {int.MaxValue}.");
            }
        }

        var shape = new AttentionShape(
            (int)query.Shape[0], (int)query.Shape[1], (int)key.Shape[1], (int)query.Shape[2], (int)key.Shape[2],
            (int)query.Shape[3], (int)value.Shape[3]);
        shape.Validate();
        return shape;
    }

    private static void Require(bool equal, TensorView first, TensorView second, string what)
    {
        if (!equal)
        {
            throw new ShapeMismatchException(
                $"{first.Name} is {first.ShapeText} and {second.Name} is {second.ShapeText}, seen as [batch, length, heads, dim]: "
                + $"they must agree in {what}. Check the files and --layout.");
        }
    }
}

/// <summary>Settings as names and values that ranks compare before work.</summary>
internal static class RunSettings
{
    /// <summary>What every command begins with: ranks that do other work, or are of another build, leave (78) before they meet in anything else.</summary>
    public static void Begin(AttentionGroup group, string command) =>
        group.Agree([new("command", command), new("version", ProductVersion.Text)]);

    /// <summary>A value as text that every locale writes alike.</summary>
    public static string Text(object value) => Convert.ToString(value, CultureInfo.InvariantCulture)!;

    /// <summary>The plan and the layout.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(PlanRequest request) =>
    [
        new("--algorithm", request.Plan.Algorithm.Name()),
        new("--reduction", request.Plan.Reduction.Name()),
        new("--query-placement", request.Plan.Placement.Name()),
        new("--shard", request.Layout.Name),
    ];

    /// <summary>The options; arrays by a digest of their contents.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(AttentionOptions options) =>
        AttentionOption.All.SelectMany(option => option.Settings(options));

    /// <summary>The scales of storage that has some, by a digest.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(KeyValueScales? scales) =>
        [new("--key-scale", Digest<float>(scales?.Key)), new("--value-scale", Digest<float>(scales?.Value))];

    private static string Digest<T>(T[]? values)
        where T : unmanaged =>
        values is null ? "none" : Fingerprint.TextOf(MemoryMarshal.AsBytes<T>(values));
}
