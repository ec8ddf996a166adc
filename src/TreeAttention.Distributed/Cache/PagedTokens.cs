using System;

namespace TreeAttention.Distributed;

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
        if (pagesPerRow < 1 || table.Length % pagesPerRow != 0 || Array.Exists(table, page => page < 0 || page >= key.Shape[0]))
        {
            throw new ShapeMismatchException(
                $"A page table of {table.Length} entries must be rows of {pagesPerRow} pages, each from 0 to {key.Shape[0] - 1}.");
        }

        (_pages, _table, _pagesPerRow, _pageSize) = (new TensorTokens(key, value, options), table, pagesPerRow, (int)key.Shape[1]);
    }

    /// <inheritdoc/>
    public bool IsRotated { get; init; }

    /// <inheritdoc/>
    public void Read(int row, int position, Span<float> key, Span<float> value) =>
        _pages.Read(_table[(row * _pagesPerRow) + (position / _pageSize)], position % _pageSize, key, value);
}
