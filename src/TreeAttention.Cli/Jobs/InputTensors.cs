using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>Queries, keys and values from files, mapped and seen as BSHD whatever their order on disk.</summary>
internal sealed class InputTensors : IDisposable
{
    private readonly TensorFile _query;
    private readonly TensorFile _key;
    private readonly TensorFile? _value;

    private readonly bool _isPacked;

    /// <summary>Maps the files and derives the sizes.</summary>
    /// <param name="request">The files.</param>
    /// <param name="isPacked">The tensors hold packed sequences: the batch axis, of one row, may be missing.</param>
    /// <exception cref="FaultException">A file is missing (66), or bad or of the wrong shape (65).</exception>
    public InputTensors(TensorRequest request, bool isPacked = false)
    {
        _isPacked = isPacked;
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

    /// <summary>Scales of f8e4m3 storage; null: 1.</summary>
    public KeyValueScales? Scales { get; }

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

    // A file of f8e4m3 holds stored elements already: they are multiplied by the scales, not divided.
    private static TensorView Scaled(TensorView view, float[]? scales) =>
        scales is not null && view.Type == ElementType.Float8E4M3 ? view.WithHeadScales(scales) : view;

    private TensorView Arranged(TensorFile file, TensorRequest request)
    {
        TensorView view = file.View;
        if (!view.Type.IsFloatingPoint())
        {
            throw new FaultException(
                FaultCode.BadInput, $"{view.Name} holds {view.Type.ShortName()} elements, but attention needs f16, bf16, f32, f64 or f8e4m3.");
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
