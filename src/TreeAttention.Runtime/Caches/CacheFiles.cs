using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Runtime.Caches;
using TreeAttention.Runtime.Files;

namespace TreeAttention;

/// <summary>Saves a cache, each rank the pages that it owns to a safetensors file of its own, and loads it on any number of ranks.</summary>
/// <remarks>
/// A file holds <c>lengths</c> [layers, rows] and <c>padding</c> [rows] of the whole cache, <c>pages</c> [entries, 3], for each page of each row the row,
/// the page's number in it and where its contents are, and for each layer these contents: <c>layer.N.key</c> [contents, 512, kv_heads, head_dim],
/// rotated as it was stored, and <c>layer.N.value</c>, as they are stored. With a storage type that has scales <c>key_scales</c> and <c>value_scales</c> [kv_heads] are
/// what they are to be multiplied by. <c>save</c> [4] is a number of this save, the same in all of its files, so that files of two
/// saves, one of which was interrupted, are not taken for one. Pages that rows share are saved once, and shared again when they are loaded. Files of
/// earlier versions, without <c>save</c>, or whose <c>pages</c> are [entries, 2], entry after entry with contents of its own, are loaded as well.
/// </remarks>
public static class CacheFiles
{
    internal const string SaveId = "save";
    internal const string KeyScales = "key_scales";
    internal const string ValueScales = "value_scales";

    private const string Prefix = "cache-";

    /// <summary>Saves a cache. Every rank calls it; all succeed or all fail.</summary>
    /// <param name="group">The ranks.</param>
    /// <param name="cache">A cache of the group.</param>
    /// <param name="directory">A directory that all ranks write to; made when it is not there.</param>
    /// <param name="force">Overwrite files of an earlier save.</param>
    /// <exception cref="ArgumentException">The cache is of another group.</exception>
    /// <exception cref="FaultException">A file cannot be created (73) or written (74).</exception>
    public static void Save(AttentionGroup group, ShardedKvCache cache, string directory, bool force = false)
    {
        ArgumentNullException.ThrowIfNull(group);
        ArgumentException.ThrowIfNullOrEmpty(directory);
        using RankDoor.Visit visit = group.EnterWith(cache, nameof(Save));
        Save(group.Context, cache, directory, force);
    }

    /// <inheritdoc cref="Save(AttentionGroup, ShardedKvCache, string, bool)"/>
    internal static void Save(RankContext context, ShardedKvCache cache, string directory, bool force)
    {
        byte[] save = context.Control.AllGather(Guid.NewGuid().ToByteArray())[0];
        RankAgreement.Together(context.Control, () =>
        {
            string name = string.Create(
                CultureInfo.InvariantCulture, $"{Prefix}{context.Transport.Rank:D5}-of-{context.Transport.Size:D5}.safetensors");
            Save(cache, save, Path.Combine(DirectoryAt(directory), name), force);
            return true;
        });
    }

    /// <summary>Fills an empty cache with what was saved, on any number of ranks. Every rank calls it; all succeed or all fail.</summary>
    /// <param name="group">The ranks.</param>
    /// <param name="cache">An empty cache of the group, of the same layers, rows, dimensions, storage type and scales, and room for the rows.</param>
    /// <param name="directory">The directory of one save; every rank must see all of its files.</param>
    /// <exception cref="ArgumentException">The cache is of another group.</exception>
    /// <exception cref="FaultException">A file is missing (66) or does not fit the cache (65), or the cache is too small (71).</exception>
    public static void Load(AttentionGroup group, ShardedKvCache cache, string directory)
    {
        ArgumentNullException.ThrowIfNull(group);
        ArgumentException.ThrowIfNullOrEmpty(directory);
        using RankDoor.Visit visit = group.EnterWith(cache, nameof(Load));
        Load(group.Context, cache, directory);
    }

    /// <inheritdoc cref="Load(AttentionGroup, ShardedKvCache, string)"/>
    internal static void Load(RankContext context, ShardedKvCache cache, string directory)
    {
        RankAgreement.Together(context.Control, () =>
        {
            using var saved = new SavedCache(directory, Prefix, cache.Options);
            var loaded = new List<int>();
            foreach (int row in saved.RowsByLength)
            {
                (int from, int shared) = saved.SharedWith(row, loaded);
                if (shared > 0)
                {
                    cache.Fork(from, row, shared);
                }
                else
                {
                    cache.PadLeft(row, saved.PaddingOf(row));
                }

                for (int layer = 0; layer < cache.Options.Layers; layer++)
                {
                    cache.AppendShard(layer, row, saved.LengthOf(layer, row) - shared, saved.TokensOf(layer));
                }

                loaded.Add(row);
            }

            return true;
        });
        cache.ShareLimits();
    }

    private static string DirectoryAt(string path)
    {
        try
        {
            return Directory.CreateDirectory(path).FullName;
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new FaultException(FaultCode.CannotCreate, $"The directory {path} for the cache cannot be made: {error.Message}", error);
        }
    }

    private static void Save(ShardedKvCache cache, byte[] save, string path, bool force)
    {
        CacheOptions options = cache.Options;
        List<(int Page, int[] Rows)> pages = PagesOf(cache);
        int[] entries = [.. pages.SelectMany((content, index) => content.Rows.SelectMany(row => new[] { row, content.Page, index }))];
        using var writer = new SafetensorsWriter(path, force);
        writer.Declare(SaveId, ElementType.Int32, save.Length / sizeof(int));
        writer.Declare("lengths", ElementType.Int32, options.Layers, options.Rows);
        writer.Declare("padding", ElementType.Int32, options.Rows);
        writer.Declare("pages", ElementType.Int32, entries.Length / 3, 3);
        KeyValueScales? scales = ScalesOf(options);
        if (scales is not null)
        {
            writer.Declare(KeyScales, ElementType.Float32, options.KvHeads);
            writer.Declare(ValueScales, ElementType.Float32, options.KvHeads);
        }

        for (int layer = 0; layer < options.Layers; layer++)
        {
            writer.Declare($"layer.{layer}.key", options.Type, pages.Count, PageSpan.Keys, options.KvHeads, options.HeadDim);
            if (!options.ValuesInKeys)
            {
                writer.Declare($"layer.{layer}.value", options.Type, pages.Count, PageSpan.Keys, options.KvHeads, options.ValueDim);
            }
        }

        writer.Begin();
        writer.Write(save);
        int[] lengths = [.. Enumerable.Range(0, options.Layers).SelectMany(
            layer => Enumerable.Range(0, options.Rows).Select(row => cache.LengthOf(layer, row)))];
        writer.Write(MemoryMarshal.AsBytes<int>(lengths));
        writer.Write(MemoryMarshal.AsBytes<int>([.. Enumerable.Range(0, options.Rows).Select(cache.LeftPaddingOf)]));
        writer.Write(MemoryMarshal.AsBytes<int>(entries));
        writer.Write(MemoryMarshal.AsBytes<float>(scales?.OfStorage(options.ValuesInKeys)));
        float[] key = new float[options.KvHeads * options.HeadDim];
        float[] value = new float[options.ValuesInKeys ? 0 : options.KvHeads * options.ValueDim];
        for (int layer = 0; layer < options.Layers; layer++)
        {
            WriteTokens(writer, cache, layer, pages, key, value, key, scales?.Key);
            WriteTokens(writer, cache, layer, pages, key, value, value, scales?.Value);
        }

        writer.Commit();
    }

    /// <summary>The scales that a save has: those of the cache, or ones; null where the storage type has none.</summary>
    internal static KeyValueScales? ScalesOf(CacheOptions options)
    {
        float[] ones = [.. Enumerable.Repeat(1f, options.KvHeads)];
        return StorageType.Of(options.Type).HasScales ? options.Scales ?? new KeyValueScales(ones, ones) : null;
    }

    // This rank's pages that some layer has tokens of, each with the rows that have it.
    private static List<(int Page, int[] Rows)> PagesOf(ShardedKvCache cache)
    {
        var pages = new List<(int, int[])>();
        int[] lengths = [.. Enumerable.Range(0, cache.Options.Rows).Select(
            row => Enumerable.Range(0, cache.Options.Layers).Max(layer => cache.LengthOf(layer, row)))];
        for (int page = 0; (long)page * PageSpan.Keys < lengths.Max(); page++)
        {
            int first = page * PageSpan.Keys;
            if (cache.Owns(first))
            {
                pages.AddRange(Enumerable.Range(0, lengths.Length)
                    .Where(row => lengths[row] > first)
                    .GroupBy(row => cache.SlotOf(row, first))
                    .Select(rows => (page, rows.ToArray())));
            }
        }

        return pages;
    }

    private static void WriteTokens(
        SafetensorsWriter writer, ShardedKvCache cache, int layer, List<(int Page, int[] Rows)> pages, float[] key, float[] value, float[] written,
        float[]? scales)
    {
        byte[] bytes = new byte[PageSpan.Keys * cache.Options.Type.BytesFor(written.Length)];
        int tokenBytes = bytes.Length / PageSpan.Keys;
        foreach ((int page, int[] rows) in written.Length == 0 ? [] : pages)
        {
            bytes.AsSpan().Clear();
            int longest = rows.MaxBy(row => cache.LengthOf(layer, row));
            int count = Math.Clamp(cache.LengthOf(layer, longest) - (page * PageSpan.Keys), 0, PageSpan.Keys);
            for (int i = 0; i < count; i++)
            {
                cache.TryRead(layer, longest, (page * PageSpan.Keys) + i, key, value);
                WriteToken(written, cache.Options.Type, scales, bytes.AsSpan(i * tokenBytes, tokenBytes));
            }

            writer.Write(bytes);
        }
    }

    // What was read back is a stored element times its scale, to which that element is the nearest one.
    private static void WriteToken(ReadOnlySpan<float> numbers, ElementType type, float[]? scales, Span<byte> into)
    {
        if (scales is null)
        {
            ElementConversion.FromFloat(numbers, type, into);
            return;
        }

        int dim = numbers.Length / scales.Length;
        for (int head = 0; head < scales.Length; head++)
        {
            StorageType.Of(type).Store(numbers.Slice(head * dim, dim), scales[head], into.Slice(head * dim, dim));
        }
    }
}
