using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>New tokens and queries that the host rotates and converts: copied back, computed, uploaded row by row. Slow and right.</summary>
internal sealed class HostTokens
{
    private readonly DeviceCopies _copies;
    private readonly TokenRows _tokens = new();
    private readonly TokenRows.RowWriter _writeRow;

    internal HostTokens(DeviceCopies copies)
    {
        _copies = copies;
        _writeRow = (row, contents, element) => _copies.Upload(row, contents.Slice(element, row.Length / contents.Type.SizeInBytes()).Address);
    }

    /// <summary>Stores new tokens.</summary>
    internal void Append(in TokenBlock tokens, KeyValueShard shard)
    {
        using HostMemory keys = _copies.Download(tokens.Keys);
        using HostMemory values = _copies.Download(tokens.Values);
        _tokens.Store(in tokens, keys.Region.AsSpan<float>(), values.Region.AsSpan<float>(), shard, _writeRow);
    }

    /// <summary>Arranges queries.</summary>
    internal void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into)
    {
        using HostMemory given = _copies.Download(queries);
        using HostMemory arranged = new(into.Values.Bytes, ElementType.Float32);
        TokenRows.Arrange(shape, given.Region.AsSpan<float>(), rotary, arranged.Region.AsSpan<float>());
        _copies.Copy(arranged.Region, into.Values);
    }
}
