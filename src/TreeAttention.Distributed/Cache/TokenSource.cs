using System;
using System.Globalization;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention;

/// <summary>Where the keys and values of a long prompt come from: read token by token, on the rank that stores them alone.</summary>
public interface ITokenSource
{
    /// <summary>Keys are rotated by their positions already, and are stored as they are.</summary>
    bool IsRotated => false;

    /// <summary>Reads a token.</summary>
    /// <param name="row">Row of the cache.</param>
    /// <param name="position">Position in the row.</param>
    /// <param name="key">[kv_heads, head_dim] to be filled.</param>
    /// <param name="value">[kv_heads, value_dim] to be filled; empty when values lie in the keys.</param>
    /// <exception cref="FaultException">The token cannot be read or must not be stored.</exception>
    void Read(int row, int position, Span<float> key, Span<float> value);
}

/// <summary>Tokens of tensors [batch, length, kv_heads, dim] of any strides and floating-point type, such as files or token-major caches.</summary>
/// <remarks>Row r of the cache reads batch row r of the tensors, position p reads index p.</remarks>
public sealed class TensorTokens : ITokenSource
{
    private readonly long[] _shape; // of the keys
    private readonly TensorRows _key;
    private readonly TensorRows? _value;
    private readonly string _keyName;
    private readonly string _valueName;
    private readonly ElementType _storage;
    private readonly KeyValueScales? _scales;
    private readonly NonFinitePolicy _policy;

    /// <summary>A source over tensors that stay valid as long as it is used.</summary>
    /// <param name="key">[batch, length, kv_heads, head_dim]</param>
    /// <param name="value">[batch, length, kv_heads, value_dim]; null when values lie in the keys.</param>
    /// <param name="options">The cache's storage type, scales and policy: numbers that must not be stored are faults.</param>
    public TensorTokens(TensorView key, TensorView? value, CacheOptions options)
    {
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(options);
        (_key, _keyName, _shape) = (new TensorRows(key), key.Name, key.Shape);
        if (value is not null && !value.Shape.AsSpan(0, Math.Min(3, value.Rank)).SequenceEqual(key.Shape.AsSpan(0, 3)))
        {
            throw new ShapeMismatchException($"Values {value.ShapeText} and keys {key.ShapeText} are of other rows, lengths or heads.", nameof(value));
        }

        (_value, _valueName) = (value is null ? null : new TensorRows(value), value?.Name ?? "value");
        (_storage, _scales, _policy) = (options.Type, options.Scales, options.NonFinite);
    }

    /// <inheritdoc/>
    public bool IsRotated { get; init; }

    /// <summary>What is read: <c>tokens of key and value</c>.</summary>
    public override string ToString() => $"{(IsRotated ? "rotated tokens" : "tokens")} of {_keyName}{(_value is null ? "" : $" and {_valueName}")}";

    /// <inheritdoc/>
    /// <exception cref="ShapeMismatchException">The tensors have no such token, or there is not room for it.</exception>
    public void Read(int row, int position, Span<float> key, Span<float> value)
    {
        if (row < 0 || row >= _shape[0] || position < 0 || position >= _shape[1])
        {
            throw new ShapeMismatchException($"{_keyName} has {_shape[0]} rows of {_shape[1]} tokens, but token {position} of row {row} is asked for.", nameof(position));
        }

        if (key.Length != _shape[2] * _key.Dim || value.Length != (_value is null ? 0 : _shape[2] * _value.Dim))
        {
            throw new ShapeMismatchException(
                $"A token of {_keyName} has {_shape[2]} heads of {_key.Dim} key and {_value?.Dim ?? 0} value elements, but there is room for {key.Length} and "
                + $"{value.Length}.", nameof(key));
        }

        Read(_key, _keyName, _scales?.Key, row, position, key);
        if (_value is not null)
        {
            Read(_value, _valueName, _scales?.Value, row, position, value);
        }
    }

    private void Read(TensorRows rows, string name, float[]? scales, int row, int position, Span<float> into)
    {
        for (int head = 0; head < into.Length / rows.Dim; head++)
        {
            Span<float> numbers = into.Slice(head * rows.Dim, rows.Dim);
            rows.Read(row, position, head, numbers);
            float scale = scales?[head] ?? 1f;
            if (double.IsFinite(RowStorage.SumOfSquares(numbers)) && !StorageRange.Overflows(RowStorage.LargestMagnitude(numbers), _storage, scale))
            {
                continue;
            }

            for (int dim = 0; dim < rows.Dim; dim++)
            {
                double element = rows.Element(row, position, head, dim);
                if (StorageRange.FaultOf(name, row, position, head, dim, element, _storage, _policy, scale) is { } fault)
                {
                    throw fault;
                }
            }
        }
    }
}

/// <summary>Tokens of a paged cache of another system: [pages, page_size, kv_heads, dim] with a table of the pages of each row.</summary>
/// <remarks>Any page size, 16 as vLLM's or 256 as flash-attn's. Such caches hold rotated keys: say so by <see cref="IsRotated"/>.</remarks>
public sealed class PagedTokens : ITokenSource
{
    private readonly TensorTokens _pages;
    private readonly int[] _table;
    private readonly int _pagesPerRow;
    private readonly int _pageSize;

    /// <summary>A source over tensors that stay valid as long as it is used.</summary>
    /// <param name="key">[pages, page_size, kv_heads, head_dim]</param>
    /// <param name="value">[pages, page_size, kv_heads, value_dim]; null when values lie in the keys.</param>
    /// <param name="table">[rows, pages of a row] index of each page of each row.</param>
    /// <param name="pagesPerRow">Pages of a row in the table.</param>
    /// <param name="options">The cache's storage type, scales and policy.</param>
    /// <exception cref="ShapeMismatchException">The table holds no whole rows, or names a page that there is not.</exception>
    public PagedTokens(TensorView key, TensorView? value, int[] table, int pagesPerRow, CacheOptions options)
    {
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(table);
        ArgumentNullException.ThrowIfNull(options);
        if (pagesPerRow < 1 || table.Length % pagesPerRow != 0 || Array.Exists(table, page => page < 0 || page >= key.Shape[0]))
        {
            throw new ShapeMismatchException(
                $"A page table of {table.Length} entries must be rows of {pagesPerRow} pages, each from 0 to {key.Shape[0] - 1}.");
        }

        (_pages, _table, _pagesPerRow, _pageSize) = (new TensorTokens(key, value, options), table, pagesPerRow, (int)key.Shape[1]);
    }

    /// <inheritdoc/>
    public bool IsRotated { get; init; }

    /// <summary>What is read: <c>tokens of key and value, 8 rows of at most 32 pages of 16</c>.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture, $"{_pages}, {_table.Length / _pagesPerRow} rows of at most {_pagesPerRow} pages of {_pageSize}");

    /// <inheritdoc/>
    /// <exception cref="ShapeMismatchException">The table has no such token, or there is not room for it.</exception>
    public void Read(int row, int position, Span<float> key, Span<float> value)
    {
        if (row < 0 || row >= _table.Length / _pagesPerRow || position < 0 || position / _pageSize >= _pagesPerRow)
        {
            throw new ShapeMismatchException(
                $"The page table has {_table.Length / _pagesPerRow} rows of {_pagesPerRow} pages of {_pageSize} tokens, but token {position} of row {row} is "
                + "asked for.", nameof(position));
        }

        _pages.Read(_table[(row * _pagesPerRow) + (position / _pageSize)], position % _pageSize, key, value);
    }
}
