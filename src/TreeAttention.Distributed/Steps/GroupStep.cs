using System;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Steps;

/// <summary>A step as a group sees it: whose it is, and whether it can be run.</summary>
internal interface IGroupStep
{
    /// <summary>The rank that the step was made with.</summary>
    RankContext Context { get; }

    /// <summary>Where the time of the last call went.</summary>
    StepTimes Times { get; }

    /// <summary>Tokens that its cache has taken in so far, over all layers.</summary>
    long TokensTaken { get; }

    /// <summary>Throws when the step, or the cache that it was made over, cannot be used any more.</summary>
    /// <exception cref="ObjectDisposedException">One of them was disposed of.</exception>
    void RequireUsable();
}

/// <summary>A step as a group runs it: every kind of call goes through one door, which watches for faults and cancellation.</summary>
/// <typeparam name="TCall">What one call takes: <see cref="LayerCall"/>, <see cref="DeviceLayerCall"/>, <see cref="LookCall"/>, <see cref="DecisionCall"/>.</typeparam>
internal interface IGroupStep<TCall> : IGroupStep
    where TCall : allows ref struct
{
    /// <summary>Does the call's work.</summary>
    void Run(TCall call);
}

/// <summary>One layer's tensors in the memory of the process: new tokens to append, queries, room for their results.</summary>
internal readonly ref struct LayerCall
{
    public required int Layer { get; init; }

    public required ReadOnlySpan<float> Query { get; init; }

    public required ReadOnlySpan<float> Key { get; init; }

    public required ReadOnlySpan<float> Value { get; init; }

    public required Span<float> Output { get; init; }

    public required Span<float> Lse { get; init; }
}

/// <summary>The same in the memory of the rank's device, in the order of a stream.</summary>
internal readonly record struct DeviceLayerCall
{
    public required int Layer { get; init; }

    public required DeviceTensor Query { get; init; }

    public required DeviceTensor Key { get; init; }

    public required DeviceTensor Value { get; init; }

    public required DeviceTensor Output { get; init; }

    public required DeviceTensor Lse { get; init; }

    public required nint Stream { get; init; }
}

/// <summary>Queries of a layer that append nothing, and room for their results.</summary>
internal readonly ref struct LookCall
{
    public required int Layer { get; init; }

    public required ReadOnlySpan<float> Query { get; init; }

    public required Span<float> Output { get; init; }

    public required Span<float> Lse { get; init; }
}

/// <summary>Which nodes of a row's token tree stay.</summary>
internal readonly ref struct DecisionCall
{
    public required int Batch { get; init; }

    public required ReadOnlySpan<int> Path { get; init; }
}
