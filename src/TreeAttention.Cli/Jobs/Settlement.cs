using System;
using System.Collections.Generic;
using System.Globalization;
using System.Runtime.InteropServices;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>Settings as names and values that ranks compare before work.</summary>
internal static class Settlement
{
    /// <summary>What every command begins with: ranks that do other work, or are of another build, leave (78) before they meet in anything else.</summary>
    public static void Begin(AttentionGroup group, string command) =>
        group.Agree([new("command", command), new("version", ProductVersion.Text)]);

    /// <summary>A value as text that every locale writes alike.</summary>
    public static string Text(object value) => Convert.ToString(value, CultureInfo.InvariantCulture)!;

    /// <summary>The plan and the layout.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(PlanRequest request) =>
    [
        new("--algorithm", request.Plan.Algorithm.Name()),
        new("--reduction", request.Plan.Reduction.Name()),
        new("--query-placement", request.Plan.Placement.Name()),
        new("--shard", request.Layout.Name),
    ];

    /// <summary>The options; arrays by a digest of their contents.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(AttentionOptions options) =>
    [
        new("--scale", options.Scale is { } scale ? Text(scale) : "default"),
        new("--causal", Text(options.Causal)),
        new("--window", $"{options.WindowLeft},{options.WindowRight}"),
        new("--softcap", Text(options.Softcap)),
        new("--alibi", Digest<float>(options.AlibiSlopes)),
        new("--sinks", Digest<float>(options.Sinks)),
        new("--key-lengths", Digest<int>(options.KeyLengths)),
        new("--query-lengths", Digest<int>(options.QueryLengths)),
        new("--leftpad", Digest<int>(options.KeyStarts)),
        new("--cu-seqlens-q", Digest<int>(options.PackedQueries)),
        new("--cu-seqlens-k", Digest<int>(options.PackedKeys)),
        new("depths", Digest<int>(options.QueryDepths)),
        new("--dfs-start", Digest<int>(options.DfsStart)),
        new("--dfs-end", Digest<int>(options.DfsEnd)),
        new("--tail-mask", Digest<bool>(options.TailMask)),
        new("--tail-bias", Digest<float>(options.TailBias)),
    ];

    /// <summary>The scales of f8e4m3 storage, by a digest.</summary>
    public static IEnumerable<KeyValuePair<string, string>> Of(KeyValueScales? scales) =>
        [new("--key-scale", Digest<float>(scales?.Key)), new("--value-scale", Digest<float>(scales?.Value))];

    private static string Digest<T>(T[]? values)
        where T : unmanaged =>
        values is null ? "none" : Fingerprint.TextOf(MemoryMarshal.AsBytes<T>(values));
}
