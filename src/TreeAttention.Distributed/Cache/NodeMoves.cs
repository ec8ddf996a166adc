using System;

namespace TreeAttention.Distributed;

/// <summary>Moves the keys and values of accepted tree nodes to where the next tokens belong, in every layer, between owners where pages begin.</summary>
/// <remarks>
/// Stored keys are rotated at their depth, which is their place on the path: they move as they are, bit for bit. Every rank goes
/// through the pairs of owners in the same order; each pair is one message of tokens, and one of how large their numbers are.
/// </remarks>
internal sealed class NodeMoves(RankContext context, ShardedKvCache cache) : IDisposable
{
    private Region _tokens;
    private Region _limits;

    private IDevice Device => context.Device;

    private int TokenElements => cache.Options.KeyFloats + cache.Options.ValueFloats;

    private int LimitFloats => 2 * cache.Options.Layers * cache.Options.KvHeads;

    /// <summary>Brings node path[i], stored at before + path[i], to before + i.</summary>
    public void Compact(int row, int before, ReadOnlySpan<int> path)
    {
        Reserve(path.Length);
        for (int first = 0; first < path.Length;)
        {
            (int from, int to) = (PageOf(before + path[first]), PageOf(before + first));
            int end = first + 1;
            while (end < path.Length && PageOf(before + path[end]) == from && PageOf(before + end) == to)
            {
                end++;
            }

            // Nodes only ever move towards the front, so what is written was read before.
            Move(row, before, path, (first, end), (from, to));
            first = end;
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_tokens.Count > 0)
        {
            Device.Free(_tokens);
            Device.Free(_limits);
        }

        (_tokens, _limits) = (Region.Empty, Region.Empty);
    }

    private static int PageOf(int position) => position / PageSpan.Keys;

    private void Reserve(int nodes)
    {
        long elements = (long)nodes * cache.Options.Layers * TokenElements;
        if (_tokens.Count < elements)
        {
            Dispose();
            _tokens = Device.Allocate(elements * cache.Options.Type.SizeInBytes(), cache.Options.Type);
            _limits = Device.Allocate(LimitFloats * sizeof(float), ElementType.Float32);
        }
    }

    private void Move(int row, int before, ReadOnlySpan<int> path, (int First, int End) nodes, (int From, int To) pages)
    {
        bool gives = cache.IsOwn(pages.From);
        bool takes = cache.IsOwn(pages.To);
        Region tokens = _tokens.Slice(0, (long)(nodes.End - nodes.First) * cache.Options.Layers * TokenElements);
        if (gives)
        {
            int slot = cache.Pages.SlotOf(row, pages.From);
            for (int i = nodes.First; i < nodes.End; i++)
            {
                CopyToken(slot, before + path[i], i - nodes.First, store: false);
            }

            WriteLimits(slot);
        }

        Exchange(gives, takes, tokens, pages);
        if (takes)
        {
            int slot = cache.Pages.SlotOf(row, pages.To);
            for (int i = nodes.First; i < nodes.End; i++)
            {
                CopyToken(slot, before + i, i - nodes.First, store: true);
            }

            ReadLimits(slot);
        }
    }

    private void Exchange(bool gives, bool takes, Region tokens, (int From, int To) pages)
    {
        if (gives && !takes)
        {
            context.Transport.Send(tokens, cache.Pages.OwnerOf(pages.To));
            context.Transport.Send(_limits, cache.Pages.OwnerOf(pages.To));
        }
        else if (takes && !gives)
        {
            context.Transport.Receive(tokens, cache.Pages.OwnerOf(pages.From));
            context.Transport.Receive(_limits, cache.Pages.OwnerOf(pages.From));
        }
    }

    // One token of all layers and heads, from its page into the message or back.
    private void CopyToken(int slot, int position, int number, bool store)
    {
        CacheOptions options = cache.Options;
        TokenPlace place = cache.Contents.PlaceOf(slot, position);
        long at = (long)number * options.Layers * TokenElements;
        for (int layer = 0; layer < options.Layers; layer++)
        {
            Region contents = cache.Contents[layer].Contents;
            for (int head = 0; head < options.KvHeads; head++)
            {
                at += CopyRow(contents.Slice(place.KeyOffset + ((long)head * PageSpan.Keys * options.HeadDim), options.HeadDim), at, store);
                if (!options.ValuesInKeys)
                {
                    at += CopyRow(contents.Slice(place.ValueOffset + ((long)head * PageSpan.Keys * options.ValueDim), options.ValueDim), at, store);
                }
            }
        }
    }

    private long CopyRow(Region row, long at, bool store)
    {
        Region message = _tokens.Slice(at, row.Count);
        Device.Copy(store ? message : row, store ? row : message);
        return row.Count;
    }

    private void WriteLimits(int slot)
    {
        using var host = new HostMemory(_limits.Bytes, ElementType.Float32);
        Span<float> numbers = host.Region.AsSpan<float>();
        for (int i = 0; i < numbers.Length / 2; i++)
        {
            PageLimits limits = LimitsOf(slot, i);
            (numbers[2 * i], numbers[(2 * i) + 1]) = (limits.LargestKeyNorm, limits.LargestValue);
        }

        Device.Copy(host.Region, _limits);
        Device.Synchronize();
    }

    // A page that takes tokens in is at most as large as both: MathF.Max lets NaN through.
    private void ReadLimits(int slot)
    {
        using var host = new HostMemory(_limits.Bytes, ElementType.Float32);
        Device.Copy(_limits, host.Region);
        Device.Synchronize();
        ReadOnlySpan<float> numbers = host.Region.AsSpan<float>();
        for (int i = 0; i < numbers.Length / 2; i++)
        {
            ref PageLimits limits = ref LimitsOf(slot, i);
            limits = new PageLimits(
                MathF.Max(limits.LargestKeyNorm, numbers[2 * i]), MathF.Max(limits.LargestValue, numbers[(2 * i) + 1]));
        }
    }

    private ref PageLimits LimitsOf(int slot, int number)
    {
        (int layer, int head) = Math.DivRem(number, cache.Options.KvHeads);
        return ref cache.Contents[layer].Limits[(slot * cache.Options.KvHeads) + head];
    }
}
