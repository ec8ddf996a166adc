using System;
using System.Collections.Generic;
using System.Linq;
using System.Reflection;
using TreeAttention.Testing.Face;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>Every public member takes null, default, negative and huge arguments, one at a time, and says in the library's words what is wrong with them.</summary>
public sealed class ArgumentSweepTests
{
    // Joining over a communicator takes an address on trust: a wrong one is the caller's crash.
    private static readonly string[] _trusting = [nameof(AttentionGroup.JoinNccl)];

    public static TheoryData<string> Types => [.. Faces().Select(type => type.Name)];

    [Theory, MemberData(nameof(Types))]
    public void Bad_arguments_are_refused_by_name(string name)
    {
        Type type = Faces().Single(face => face.Name == name);
        var wrong = new List<string>();

        foreach (FaceCall call in FaceCall.MethodsOf(type).Concat(FaceCall.ConstructorsOf(type)).Where(call => !_trusting.Contains(call.Method.Name)))
        {
            for (int i = 0; i < call.Parameters.Count; i++)
            {
                wrong.AddRange(BadValues(call.Parameters[i].ParameterType).Select(bad => Try(call, i, bad)).OfType<string>());
            }
        }

        Assert.True(wrong.Count == 0, string.Join('\n', wrong));
    }

    [Fact]
    public void A_careless_exception_is_noticed()
    {
        string[] none = [];
        Assert.NotNull(Judge(Record.Exception(() => none[1])));
        Assert.NotNull(Judge(new KeyNotFoundException()));
        Assert.NotNull(Judge(new OverflowException()));
        Assert.NotNull(Judge(new ArgumentOutOfRangeException()));
        Assert.Null(Judge(new ArgumentNullException("cache")));
        Assert.Null(Judge(null));
    }

    // What is wrong with what the member does; null when it is well.
    private static string? Try(FaceCall call, int parameter, object? bad)
    {
        using var world = new FaceWorld();
        object? target = call.Method.IsStatic || call.Method.IsConstructor ? null : world.TargetOf(call.Method.DeclaringType!);
        if (target is null && !call.Method.IsStatic && !call.Method.IsConstructor)
        {
            return null;
        }

        object?[] arguments = world.ArgumentsOf(call);
        arguments[parameter] = bad;
        Exception? error = Record.Exception(() => (call.Invoke(target, arguments) as IDisposable)?.Dispose());
        return Judge(error) is { } reason ? $"{call.Name} with {call.Parameters[parameter].Name} = {Text(bad)}: {reason}" : null;
    }

    private static string? Judge(Exception? error) => error switch
    {
        null or FaultException or OperationCanceledException or FormatException => null,
        ArgumentException { ParamName: null } and not ShapeMismatchException => $"no parameter's name: {error}",
        ArgumentException => null,
        InvalidOperationException => null,
        _ => error.ToString(),
    };

    private static IEnumerable<object?> BadValues(Type type)
    {
        if (FaceCall.ArrayFor(type) is { } array)
        {
            return [Array.CreateInstance(array.GetElementType()!, 0), Array.CreateInstance(array.GetElementType()!, 7)];
        }

        return type == typeof(int) ? [-1, int.MinValue, int.MaxValue]
            : type == typeof(long) ? [-1L, long.MaxValue]
            : type == typeof(float) ? [float.NaN, -1f]
            : type == typeof(double) ? [double.NaN, -1.0]
            : type == typeof(nint) ? [(nint)0]
            : type == typeof(string) ? [null, "", "\0"]
            : type.IsEnum ? [Enum.ToObject(type, 99)]
            : type == typeof(DeviceTensor) ? [new DeviceTensor(0, 5), new DeviceTensor(16, -1), new DeviceTensor(16, 3, (ElementType)99)]
            : type == typeof(CacheOptions) ? [null, .. BadCaches()]
            : type == typeof(DecodeOptions) ? [null, .. BadSteps()]
            : type == typeof(PrefillOptions) ? [null, .. BadPrefills()]
            : type == typeof(AttendOptions) ? [null, .. BadAttends()]
            : type.IsValueType && Nullable.GetUnderlyingType(type) is null ? [Activator.CreateInstance(type)]
            : [null];
    }

    private static IEnumerable<CacheOptions> BadCaches()
    {
        CacheOptions good = FaceWorld.CacheOptions;
        return
        [
            good with { Rows = 0 }, good with { Rows = int.MaxValue }, good with { Layers = -1 }, good with { Layers = int.MaxValue },
            good with { KvHeads = 0 }, good with { KvHeads = int.MaxValue }, good with { HeadDim = -3 }, good with { HeadDim = int.MaxValue },
            good with { ValueDim = 0 }, good with { MaxLength = -1 }, good with { MaxLength = int.MaxValue, Rows = 1000, KvHeads = 1000 },
            good with { Type = (ElementType)99 }, good with { Type = ElementType.Int32 }, good with { MemoryBytes = -1 }, good with { MemoryFraction = double.NaN },
            good with { Rotary = new RotaryOptions(-1) }, good with { Rotary = new RotaryOptions(3) }, good with { NonFinite = (NonFinitePolicy)9 },
            good with { Scales = new KeyValueScales([1], [1]) }, good with { ValuesInKeys = true, ValueDim = 5 },
        ];
    }

    private static IEnumerable<DecodeOptions> BadSteps()
    {
        DecodeOptions good = FaceWorld.DecodeOptions;
        return
        [
            good with { QueryLength = 0 }, good with { QueryLength = -1 }, good with { QueryLength = int.MaxValue }, good with { QueryHeads = 3 },
            good with { QueryHeads = 0 }, good with { QueryHeads = int.MaxValue - 1 }, good with { Rows = [] }, good with { Rows = [0, 0] }, good with { Rows = [9] },
            good with { Attention = null! }, good with { Plan = null! }, good with { Plan = new AttentionPlan((AttentionAlgorithm)99) },
            good with { Plan = new AttentionPlan(AttentionAlgorithm.Tree, (ReductionKind)99) }, good with { Plan = new AttentionPlan(AttentionAlgorithm.Single) },
            .. BadAttention().Select(bad => good with { Attention = bad }),
        ];
    }

    private static IEnumerable<PrefillOptions> BadPrefills()
    {
        PrefillOptions good = FaceWorld.PrefillOptions;
        return
        [
            good with { Lengths = null! }, good with { Lengths = [] }, good with { Lengths = [-1] }, good with { Lengths = [int.MaxValue] }, good with { Rows = [] },
            good with { Rows = [7] }, good with { QueryHeads = 0 }, good with { QueryHeads = int.MaxValue - 1 }, good with { Method = (PrefillMethod)9 },
            good with { Layout = null! }, good with { Attention = null! }, good with { Plan = null! },
            good with { Method = PrefillMethod.Chunked, Chunk = 0 }, good with { Method = PrefillMethod.Chunked, Chunk = -5 },
            .. BadAttention().Select(bad => good with { Attention = bad }),
        ];
    }

    private static IEnumerable<AttendOptions> BadAttends()
    {
        var good = new AttendOptions { QueryHeads = 2, KvHeads = 2, HeadDim = 4, ValueDim = 4 };
        return
        [
            good with { Batch = 0 }, good with { Batch = -1 }, good with { Batch = int.MaxValue }, good with { QueryLength = -1 }, good with { QueryHeads = 0 },
            good with { KvHeads = 0 }, good with { HeadDim = 0 }, good with { HeadDim = int.MaxValue }, good with { ValueDim = -1 }, good with { Attention = null! },
            good with { Plan = null! }, good with { Type = (ElementType)99 }, good with { Layout = ShardLayout.Lengths([5, 5]) },
            good with { Plan = new AttentionPlan((AttentionAlgorithm)99) },
            .. BadAttention().Select(bad => good with { Attention = bad }),
        ];
    }

    private static IEnumerable<AttentionOptions> BadAttention() =>
    [
        new() { AlibiSlopes = [] }, new() { Sinks = [1, 2, 3, 4, 5] }, new() { KeyLengths = [-1] }, new() { QueryLengths = [99] }, new() { PackedQueries = [0] },
        new() { TailMask = [], TailMaskLength = -1 }, new() { TailBias = [], TailBiasLength = int.MaxValue }, new() { QueryDepths = [5] }, new() { DfsStart = [0] },
        new() { Softcap = float.NaN }, new() { Scale = double.PositiveInfinity }, new() { WindowLeft = int.MinValue }, new() { WindowLeft = int.MaxValue },
    ];

    private static string Text(object? value) => value switch
    {
        null => "null",
        Array array => $"{array.Length} elements",
        _ => value.ToString()!,
    };

    private static IEnumerable<Type> Faces() => ((Type[])[typeof(AttentionGroup), typeof(ShardedKvCache), typeof(ShardLayout)])
        .SelectMany(type => type.Assembly.GetExportedTypes())
        .Where(type => !type.IsEnum && !type.IsInterface && type.Namespace == "TreeAttention" && !typeof(Exception).IsAssignableFrom(type))
        .Where(type => type.GetMembers(BindingFlags.Public | BindingFlags.Instance | BindingFlags.Static | BindingFlags.DeclaredOnly).Length > 0)
        .Distinct();
}
