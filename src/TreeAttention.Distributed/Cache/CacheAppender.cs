using System;

namespace TreeAttention.Distributed;

/// <summary>Appends tokens to the rows of a cache: finds room, refuses what must not be stored, stores, counts.</summary>
internal sealed class CacheAppender(ShardedKvCache cache, CacheRows rows, CacheWriter writer)
{
    private readonly CacheOptions _options = cache.Options;

    /// <summary>Appends tokens of the host's memory; where a step's input is given they are only written into it, which then stores them.</summary>
    public void Append(
        int layer, ReadOnlySpan<int> which, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<int> depths, IStepInput? input)
    {
        int tokens = TokensIn(which.Length, key.Length, value.Length);
        RequireDepths(which.Length, tokens, depths);
        writer.RequireStorable(layer, which, tokens, depths, key, value);
        rows.MakeRoom(layer, which, tokens);
        key.CopyTo(input is null ? writer.TakeKeys(which.Length * tokens) : input.Keys);
        value.CopyTo(input is null ? writer.TakeValues(which.Length * tokens) : input.Values);
        writer.Store(layer, which, tokens, depths, input);
        Advance(layer, which, tokens);
        cache.Bound.Measure(_options.ValuesInKeys ? key : value);
    }

    /// <summary>Appends tokens of the device's memory, unchecked; where a step's input is given it has them, and then stores them.</summary>
    public void Append(int layer, ReadOnlySpan<int> which, Region key, Region value, ReadOnlySpan<int> depths, IStepInput? input)
    {
        int tokens = TokensIn(which.Length, key.Count, value.Count);
        RequireDepths(which.Length, tokens, depths);
        rows.MakeRoom(layer, which, tokens);
        writer.Store(layer, which, tokens, depths, key, value, input);
        Advance(layer, which, tokens);
        cache.Bound.Forget();
    }

    /// <inheritdoc cref="ShardedKvCache.AppendShard"/>
    public void AppendShard(int layer, int row, int tokens, ITokenSource source)
    {
        int first = rows.LengthOf(layer, row);
        rows.MakeRoom(layer, [row], tokens);
        for (int position = first; position < first + tokens;)
        {
            int end = Math.Min(first + tokens, (position / PageSpan.Keys * PageSpan.Keys) + PageSpan.Keys);
            if (cache.IsOwn(position / PageSpan.Keys))
            {
                int count = end - position;
                Span<float> keys = writer.TakeKeys(count);
                Span<float> values = writer.TakeValues(count);
                for (int i = 0; i < count; i++)
                {
                    source.Read(
                        row, position + i, keys.Slice(i * _options.KeyFloats, _options.KeyFloats),
                        values.Slice(i * _options.ValueFloats, _options.ValueFloats));
                }

                writer.StoreAt(layer, row, position, count, source.IsRotated);
            }

            position = end;
        }

        rows.Advance(layer, row, tokens);
        cache.Bound.Forget();
    }

    private int TokensIn(int count, long keyFloats, long valueFloats)
    {
        long tokens = count == 0 ? 0 : keyFloats / _options.KeyFloats / count;
        if (keyFloats != tokens * count * _options.KeyFloats || valueFloats != tokens * count * _options.ValueFloats || tokens > _options.MaxLength)
        {
            throw new ShapeMismatchException(
                $"{keyFloats} key and {valueFloats} value elements are not the same number of tokens for each of {count} rows: a token has "
                + $"{_options.KvHeads} × {_options.HeadDim} key and {_options.ValueFloats} value elements, and a row at most {_options.MaxLength} tokens.");
        }

        return (int)tokens;
    }

    private static void RequireDepths(int count, int tokens, ReadOnlySpan<int> depths)
    {
        if (depths.Length > 0 && depths.Length != count * tokens)
        {
            throw new ShapeMismatchException($"{depths.Length} depths were given for {count} rows × {tokens} tokens.");
        }
    }

    private void Advance(int layer, ReadOnlySpan<int> which, int tokens)
    {
        foreach (int row in which)
        {
            rows.Advance(layer, row, tokens);
        }
    }
}
