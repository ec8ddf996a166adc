using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;

namespace TreeAttention.Testing.Face;

/// <summary>One rank with a cache and every kind of step over it, and a good argument for each parameter of the public face.</summary>
internal sealed class FaceWorld : IDisposable
{
    private const int Heads = 2;
    private const int Dim = 4;

    // Some zeros that stay where they are.
    private static readonly nint _zeros = System.Runtime.InteropServices.Marshal.AllocHGlobal(4096);

    private readonly string _folder = Directory.CreateTempSubdirectory("treeattention-face-").FullName;

    public FaceWorld()
    {
        Group = AttentionGroup.JoinInProcess(1, new GroupOptions { Device = DeviceKind.Cpu, Threads = 1 })[0];
        Cache = Group.CreateCache(CacheOptions);
        Step = Group.CreateStep(Cache, DecodeOptions);
        Tree = Group.CreateSpeculativeStep(Cache, DecodeOptions, TokenTree.FromParents([-1]));
        Prefill = Group.CreatePrefill(Cache, PrefillOptions);
    }

    public AttentionGroup Group { get; }

    public ShardedKvCache Cache { get; }

    public DecodeStep Step { get; }

    public SpeculativeStep Tree { get; }

    public PrefillStep Prefill { get; }

    public static CacheOptions CacheOptions => new() { KvHeads = Heads, HeadDim = Dim, ValueDim = Dim, MaxLength = 2000, Rows = 2 };

    public static DecodeOptions DecodeOptions => new() { QueryHeads = Heads, Attention = new AttentionOptions { Causal = true }, Rows = [0] };

    public static PrefillOptions PrefillOptions => new() { Lengths = [1], Rows = [1], QueryHeads = Heads };

    /// <summary>The object of this world that members of a type are called on; null for static ones and types that it has not.</summary>
    public object? TargetOf(Type type) =>
        type == typeof(AttentionGroup) ? Group
        : type == typeof(ShardedKvCache) ? Cache
        : type == typeof(DecodeStep) ? Step
        : type == typeof(SpeculativeStep) ? Tree
        : type == typeof(PrefillStep) ? Prefill
        : null;

    /// <summary>Arguments with which the member does what it is for.</summary>
    public object?[] ArgumentsOf(FaceCall call) => [.. call.Parameters.Select(parameter => ArgumentFor(call, parameter))];

    public void Dispose()
    {
        Group.Dispose();
        Directory.Delete(_folder, recursive: true);
    }

    private object? ArgumentFor(FaceCall call, ParameterInfo parameter)
    {
        Type type = parameter.ParameterType;
        if (FaceCall.ArrayFor(type) is { } array)
        {
            int length = array == typeof(float[]) ? FloatsOf(call, parameter.Name!) : call.Method.Name == nameof(AttentionGroup.Commit) ? 0 : 1;
            return Array.CreateInstance(array.GetElementType()!, length);
        }

        return type == typeof(AttentionGroup) ? Group
            : TargetOf(type) ?? MakeFor(type)
            ?? (type == typeof(string) ? Path.Combine(_folder, Guid.NewGuid().ToString("N"))
            : type == typeof(int) && parameter.Name is "ranks" or "tokens" or "to" ? 1
            : type.IsValueType ? Activator.CreateInstance(type)
            : null);
    }

    private static object? MakeFor(Type type) => type.Name switch
    {
        nameof(TreeAttention.CacheOptions) => CacheOptions,
        nameof(TreeAttention.DecodeOptions) => DecodeOptions,
        nameof(TreeAttention.PrefillOptions) => PrefillOptions,
        nameof(AttendOptions) => new AttendOptions { QueryHeads = Heads, KvHeads = Heads, HeadDim = Dim, ValueDim = Dim },
        nameof(GroupOptions) => new GroupOptions { Device = DeviceKind.Cpu, Threads = 1 },
        nameof(ITokenSource) => new Silence(),
        _ when type == typeof(IReadOnlyList<TokenTree>) => new[] { TokenTree.FromParents([-1]) },
        nameof(TensorView) => new TensorView("zeros", _zeros, ElementType.Float32, [1, 1, Heads, Dim]),
        _ when type == typeof(Action) => new Action(Nothing),
        _ when type == typeof(Func<int>) => new Func<int>(() => 1),
        _ when type == typeof(Action<AttentionGroup>) => new Action<AttentionGroup>(_ => Nothing()),
        _ => null,
    };

    private static void Nothing()
    {
    }

    private static int FloatsOf(FaceCall call, string name) => name switch
    {
        "lse" => Heads,
        "key" or "value" when call.Method.Name == nameof(ShardedKvCache.Append) => Heads * Dim * (call.Parameters.Count == 3 ? 2 : 1),
        _ => Heads * Dim,
    };

    /// <summary>Tokens of zeros.</summary>
    private sealed class Silence : ITokenSource
    {
        public void Read(int row, int position, Span<float> key, Span<float> value)
        {
            key.Clear();
            value.Clear();
        }
    }
}
