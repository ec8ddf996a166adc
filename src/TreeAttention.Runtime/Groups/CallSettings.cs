using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Runtime.Groups;

/// <summary>What every rank must give alike to a call of a group, as names and values: arrays by a fingerprint of their contents.</summary>
/// <remarks>What belongs to one rank alone (memory that it may take, threads, its GPU) is not among them.</remarks>
internal static class CallSettings
{
    /// <summary>What a cache is made with.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(CacheOptions options) =>
    [
        Pair(nameof(CacheOptions), nameof(options.Layers), options.Layers),
        Pair(nameof(CacheOptions), nameof(options.Rows), options.Rows),
        Pair(nameof(CacheOptions), nameof(options.KvHeads), options.KvHeads),
        Pair(nameof(CacheOptions), nameof(options.HeadDim), options.HeadDim),
        Pair(nameof(CacheOptions), nameof(options.ValueDim), options.ValueDim),
        Pair(nameof(CacheOptions), nameof(options.ValuesInKeys), options.ValuesInKeys),
        Pair(nameof(CacheOptions), nameof(options.Type), options.Type.ShortName()),
        Pair(nameof(CacheOptions), nameof(options.Scales), Fingerprints(options.Scales)),
        Pair(nameof(CacheOptions), nameof(options.MaxLength), options.MaxLength),
        Pair(nameof(CacheOptions), nameof(options.Rotary), options.Rotary?.ToString() ?? "none"),
        Pair(nameof(CacheOptions), nameof(options.NonFinite), options.NonFinite),
        Pair(nameof(CacheOptions), nameof(options.Replicated), options.Replicated),
    ];

    /// <summary>What a decode step, or the verification of trees, is made with.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(DecodeOptions options) =>
    [
        Pair(nameof(DecodeOptions), nameof(options.QueryLength), options.QueryLength),
        Pair(nameof(DecodeOptions), nameof(options.QueryHeads), options.QueryHeads),
        Pair(nameof(DecodeOptions), nameof(options.Rows), List(options.Rows)),
        Pair(nameof(DecodeOptions), nameof(options.Plan), options.Plan),
        .. Of(options.Attention),
    ];

    /// <summary>Trees, which are told apart by their parents and biases.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(IReadOnlyList<TokenTree> trees) =>
    [
        Pair(nameof(TokenTree), nameof(trees.Count), string.Join(',', trees.Select(tree => tree.Count))),
        Pair(nameof(TokenTree), nameof(TokenTree.Parents), string.Join(',', trees.Select(tree => Fingerprint.TextOf(MemoryMarshal.AsBytes(tree.Parents))))),
        Pair(nameof(TokenTree), nameof(TokenTree.Bias), string.Join(',', trees.Select(tree => Print<float>(tree.Bias)))),
    ];

    /// <summary>What a prefill is made with.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(PrefillOptions options) =>
    [
        Pair(nameof(PrefillOptions), nameof(options.Method), options.Method.Name()),
        Pair(nameof(PrefillOptions), nameof(options.Lengths), List(options.Lengths)),
        Pair(nameof(PrefillOptions), nameof(options.Rows), List(options.Rows)),
        Pair(nameof(PrefillOptions), nameof(options.QueryHeads), options.QueryHeads),
        Pair(nameof(PrefillOptions), nameof(options.Layout), options.Layout.Name),
        Pair(nameof(PrefillOptions), nameof(options.Chunk), options.Chunk),
        Pair(nameof(PrefillOptions), nameof(options.Plan), options.Plan),
        .. Of(options.Attention),
    ];

    /// <summary>What attention without a cache is called with, and its queries.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(AttendOptions options, ReadOnlySpan<float> query) =>
    [
        Pair(nameof(AttendOptions), nameof(options.Batch), options.Batch),
        Pair(nameof(AttendOptions), nameof(options.QueryLength), options.QueryLength),
        Pair(nameof(AttendOptions), nameof(options.QueryHeads), options.QueryHeads),
        Pair(nameof(AttendOptions), nameof(options.KvHeads), options.KvHeads),
        Pair(nameof(AttendOptions), nameof(options.HeadDim), options.HeadDim),
        Pair(nameof(AttendOptions), nameof(options.ValueDim), options.ValueDim),
        Pair(nameof(AttendOptions), nameof(options.ValuesInKeys), options.ValuesInKeys),
        Pair(nameof(AttendOptions), nameof(options.Plan), options.Plan),
        Pair(nameof(AttendOptions), nameof(options.Layout), options.Layout?.Name ?? "in the order of the ranks"),
        Pair(nameof(AttendOptions), nameof(options.Type), options.Type.ShortName()),
        Pair(nameof(AttendOptions), nameof(options.Scales), Fingerprints(options.Scales)),
        Pair(nameof(AttendOptions), nameof(options.NonFinite), options.NonFinite),
        .. Of(options.Attention),
        new("query", Fingerprint.TextOf(MemoryMarshal.AsBytes(query))),
    ];

    private static IEnumerable<KeyValuePair<string, string>> Of(AttentionOptions options) => AttentionOption.All.SelectMany(option => option.Settings(options));

    private static KeyValuePair<string, string> Pair(string owner, string property, object value) =>
        new($"{owner}.{property}", Convert.ToString(value, CultureInfo.InvariantCulture)!);

    private static string List(int[]? values) => values is null ? "none" : string.Join(',', values);

    private static string Fingerprints(KeyValueScales? scales) => scales is null ? "none" : $"{Print<float>(scales.Key)} {Print<float>(scales.Value)}";

    private static string Print<T>(T[]? values)
        where T : unmanaged => values is null ? "none" : Fingerprint.TextOf(MemoryMarshal.AsBytes<T>(values));
}
