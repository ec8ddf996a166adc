using System;

namespace TreeAttention.Distributed;

/// <summary>Tokens of tensors [batch, length, kv_heads, dim] of any strides and floating-point type, such as files or token-major caches.</summary>
/// <remarks>Row r of the cache reads batch row r of the tensors, position p reads index p.</remarks>
public sealed class TensorTokens : ITokenSource
{
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
        (_key, _keyName) = (new TensorRows(key), key.Name);
        (_value, _valueName) = (value is null ? null : new TensorRows(value), value?.Name ?? "value");
        (_storage, _scales, _policy) = (options.Type, options.Scales, options.NonFinite);
    }

    /// <inheritdoc/>
    public bool IsRotated { get; init; }

    /// <inheritdoc/>
    public void Read(int row, int position, Span<float> key, Span<float> value)
    {
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
