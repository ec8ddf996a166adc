using System.Collections;
using System.Collections.Generic;

namespace TreeAttention.Distributed.Layout;

/// <summary>The pages of a shard, batch row after batch row, in an array that a growing cache fills in place.</summary>
internal sealed class PageTable : IReadOnlyList<KeyPage>
{
    private readonly KeyPage[] _pages;

    internal PageTable(KeyPage[] pages, int count) => (_pages, Count) = (pages, count);

    /// <inheritdoc/>
    public int Count { get; private set; }

    /// <summary>The most pages that there is room for.</summary>
    public int Capacity => _pages.Length;

    /// <inheritdoc/>
    public KeyPage this[int index] => _pages[index];

    /// <inheritdoc/>
    public IEnumerator<KeyPage> GetEnumerator()
    {
        for (int page = 0; page < Count; page++)
        {
            yield return _pages[page];
        }
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    /// <summary>Replaces a page.</summary>
    internal void Set(int index, KeyPage page) => _pages[index] = page;

    /// <summary>Says how many pages there are, at most as many as there is room for.</summary>
    internal void Resize(int count) => Count = count;
}
