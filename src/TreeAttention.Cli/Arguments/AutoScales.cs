using System;
using TreeAttention.Distributed.Cache;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Cli.Arguments;

/// <summary>Scales that the command line leaves to the numbers: <c>--key-scale auto</c>, <c>--value-scale auto</c>.</summary>
internal static class AutoScales
{
    /// <summary>Compares what ranks were asked, before some of them meet to measure and others do not.</summary>
    public static void Begin(AttentionGroup group, ScalesRequest request) =>
        group.Agree([new("--key-scale auto, --value-scale auto", $"{request.Key is { IsAuto: true }}, {request.Value is { IsAuto: true }}")]);

    /// <summary>The scales, measured where the command line says so. Every rank calls it.</summary>
    /// <param name="group">The ranks.</param>
    /// <param name="request">What the command line says.</param>
    /// <param name="given">The scales as far as they are given.</param>
    /// <param name="storage">Storage type.</param>
    /// <param name="sizes">The tensors' sizes.</param>
    /// <param name="tokens">Tokens of each row that are measured, from the first on.</param>
    /// <param name="open">The tokens.</param>
    /// <param name="present">The tokens that there are; all when null.</param>
    /// <exception cref="FaultException">A number is not finite (65).</exception>
    public static KeyValueScales? Settle(
        AttentionGroup group, ScalesRequest request, KeyValueScales? given, ElementType storage, CacheOptions sizes, int tokens,
        Func<CacheOptions, ITokenSource> open, PresentTokens? present = null)
    {
        if (!request.IsAuto || given is null)
        {
            return given;
        }

        CacheOptions numbers = sizes with { Type = ElementType.Float32, Scales = null };
        group.Agree([new("sizes", $"{sizes.Rows} {sizes.KvHeads} {sizes.HeadDim} {sizes.ValueDim} {tokens}")]);
        ScaleMeter meter = group.Together(() =>
        {
            var measured = new ScaleMeter(numbers);
            measured.Measure(open(numbers), tokens, group.Rank, group.Size, present);
            return measured;
        });
        KeyValueScales scales = meter.Agree(group.Context.Control, storage);
        float[] keys = request.Key is { IsAuto: true } ? scales.Key : given.Key;
        return new KeyValueScales(keys, request.ValuesInKeys ? keys : request.Value is { IsAuto: true } ? scales.Value : given.Value);
    }
}
