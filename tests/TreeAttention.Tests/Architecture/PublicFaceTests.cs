using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Reflection;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Architecture;

/// <summary>What users of the package meet: each type says in a debugger or a log what it is, and the surface is written down.</summary>
public sealed class PublicFaceTests
{
    private static readonly Assembly[] _assemblies = [typeof(AttentionShape).Assembly, typeof(AttentionGroup).Assembly];
    private static readonly GroupOptions _alone = new() { Device = DeviceKind.Cpu, Threads = 1 };

    [Fact]
    public void Every_public_object_says_what_it_is()
    {
        IEnumerable<Type> objects = _assemblies.SelectMany(assembly => assembly.GetExportedTypes())
            .Where(type => !type.IsEnum && !type.IsInterface && !(type.IsAbstract && type.IsSealed));

        Assert.Empty(objects.Where(type => !SaysWhatItIs(type)).Select(type => type.Name));
    }

    [Fact]
    public void A_type_that_says_nothing_is_noticed()
    {
        Assert.False(SaysWhatItIs(typeof(StringReader)));
        Assert.False(SaysWhatItIs(typeof(ArgumentException)));
    }

    [Fact]
    public void A_cache_and_its_steps_say_sizes_options_and_state()
    {
        using AttentionGroup group = AttentionGroup.JoinInProcess(1, _alone)[0];
        ShardedKvCache cache = group.CreateCache(Options() with { Layers = 3, MaxLength = 2048 });
        using DecodeStep step = group.CreateStep(
            cache,
            new DecodeOptions { QueryHeads = 4, Attention = new() { Causal = true, Sinks = [1, 2, 3, 4] }, Plan = new(AttentionAlgorithm.Tree) });
        using SpeculativeStep tree = group.CreateSpeculativeStep(cache, new DecodeOptions { QueryHeads = 4 }, TokenTree.FromParents([-1, 0, 0]));
        using PrefillStep prefill = group.CreatePrefill(cache, new PrefillOptions { Lengths = [1000, 500], QueryHeads = 4 });
        cache.Append(0, new float[2 * 7 * 3], new float[2 * 7 * 3]);

        Assert.Equal("rank 0 of 1: 1 rank in this process", $"{group}");
        Assert.Equal("2 rows of at most 2,048 tokens, the longest 7; 3 layers, bf16, 1 KV heads of 3", $"{cache}");
        Assert.Equal("1 queries of each of 2 rows, 4 heads, tree/auto; causal, sinks of 4", $"{step}");
        Assert.StartsWith("a tree of 3 nodes: 3 queries of each of 2 rows", $"{tree}", StringComparison.Ordinal);
        Assert.Equal("ring over 2 prompts of 1,500 tokens, 4 heads", $"{prefill}");

        cache.Dispose();

        Assert.EndsWith(", disposed of", $"{cache}", StringComparison.Ordinal);
    }

    [Fact]
    public void Tensors_trees_scales_and_options_say_what_they_hold()
    {
        using var key = new HostTensor("key", ElementType.Float16, [1, 2, 1, 3], new double[6]);

        Assert.Equal("key f16 [1, 2, 1, 3]", $"{key.View}");
        Assert.Equal("4096 bf16 at 0x7f00", $"{new DeviceTensor(0x7f00, 4096, ElementType.BFloat16)}");
        Assert.Equal("3 nodes, parents -1 0 0", $"{TokenTree.FromParents([-1, 0, 0])}");
        Assert.Equal("scales of 2 KV heads, keys 0.25 to 0.5, values 1 to 3", $"{new KeyValueScales([0.5f, 0.25f], [1, 3])}");
        Assert.Equal("no option", $"{new AttentionOptions()}");
        Assert.Equal("window 4,-1, depth-first of 3 and 5", $"{new AttentionOptions { WindowLeft = 4, DfsStart = new int[3], DfsEnd = new int[5] }}");
        Assert.Equal("ring", $"{new AttentionPlan(AttentionAlgorithm.Ring)}");
        Assert.Equal("tokens of key, 2 rows of at most 3 pages of 2", $"{new PagedTokens(key.View, null, new int[6], 3, Options())}");
    }

    private static CacheOptions Options() => new() { Rows = 2, KvHeads = 1, HeadDim = 3, ValueDim = 3, MaxLength = 6, Type = ElementType.BFloat16 };

    // By ToString of its own (records have one), or as exceptions do by a display for debuggers.
    private static bool SaysWhatItIs(Type type)
    {
        Type says = type.GetMethod(nameof(ToString), Type.EmptyTypes)!.DeclaringType!;
        bool isOwn = _assemblies.Contains(says.Assembly);
        return isOwn || type.GetCustomAttribute<DebuggerDisplayAttribute>() is not null;
    }
}
