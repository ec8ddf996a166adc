using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Ports;

/// <summary>A GPU whose stream a transport may enqueue on: its operations then take their place in the order of the device's work, and nobody waits.</summary>
internal interface IStreamDevice : IStagingDevice
{
    /// <summary>What tells the GPU from the others of its machine: its PCI bus address.</summary>
    string BusAddress { get; }

    /// <summary>Called again and again while enqueued work is waited for, and once after it; it throws when what a transport enqueued failed or cannot end. Null: nobody is asked.</summary>
    Action? WhileWaiting { get; set; }

    /// <summary>Makes the GPU the calling thread's.</summary>
    /// <returns>The driver's handle of the stream of all the device's work.</returns>
    nint EnterStream();

    /// <summary>Work that is enqueued from now on waits for what a stream of the caller's holds now; the host does not wait.</summary>
    /// <param name="stream">The driver's handle of a stream of the GPU's primary context; 0 is the default stream.</param>
    /// <exception cref="FaultException">It is no such stream (202).</exception>
    void Follow(nint stream);

    /// <summary>What a stream of the caller's gets from now on waits for the work that is enqueued now; the host does not wait.</summary>
    /// <inheritdoc cref="Follow"/>
    void Precede(nint stream);

    /// <summary>Records what <paramref name="work"/> enqueues on the stream, instead of doing it.</summary>
    /// <remarks>The work has been done once before, so that it allocates nothing, compiles nothing and waits for nothing; its regions lie on the device.</remarks>
    /// <exception cref="InvalidOperationException">The work asks for what no capture can hold: an allocation, a wait, a copy to or from ordinary host memory.</exception>
    /// <exception cref="FaultException">The device failed (202).</exception>
    IReplay Capture(Action work);

    /// <summary>Ends all replays, and the capture that is under way: none can be launched any more, and what was launched goes on without being waited for.</summary>
    /// <remarks>For transports whose operations they hold, and which cannot end before them.</remarks>
    void EndReplays();

    /// <summary>Brings what captured work reads of a plan up to date, in the order of the stream: its pages and the lengths of its rows, as they are now.</summary>
    /// <returns>A number of where they lie: work that was captured when it was another one must be captured anew.</returns>
    long Refresh(ShardPlan plan);

    /// <summary>Makes what captured steps of a cache take from the host.</summary>
    /// <param name="shape">Sizes of the calls: batch rows, queries, heads.</param>
    /// <param name="tokens">Tokens that a step appends to all rows together.</param>
    /// <param name="plan">Storage of the cache.</param>
    /// <param name="rotary">How keys and queries turn; null for not at all.</param>
    IStepInput CreateStepInput(AttentionShape shape, int tokens, ShardPlan plan, RotaryOptions? rotary);

    /// <summary>Makes a timer of the stream.</summary>
    IStreamTimer CreateTimer();

    /// <summary>Makes a window of this rank's for the ranks of its node.</summary>
    /// <param name="rank">This rank.</param>
    /// <param name="ranks">Ranks that share.</param>
    /// <param name="bytesPerRank">Bytes of a slot.</param>
    IPeerWindow CreatePeerWindow(int rank, int ranks, long bytesPerRank);
}

/// <summary>Recorded work of a device (a CUDA graph): enqueued whole, by one call of the driver.</summary>
/// <remarks>
/// It does again what was enqueued, over the same memory: what lies there by then is what counts. Memory that it works on is
/// given to nobody else as long as it lives, even if it is freed.
/// </remarks>
internal interface IReplay : IDisposable
{
    /// <summary>Enqueues the work.</summary>
    /// <exception cref="FaultException">The device failed (202).</exception>
    void Launch();
}

/// <summary>Marks in the order of a device's stream, and the time between them, taken by the device: nobody waits at a mark.</summary>
internal interface IStreamTimer : IDisposable
{
    /// <summary>Enqueues a mark; inside a capture, one that every replay sets again.</summary>
    /// <param name="number">Which: 0, 1, 2, ... A mark set again forgets when it was set before.</param>
    void Mark(int number);

    /// <summary>Time between two marks that have passed.</summary>
    TimeSpan Between(int first, int second);
}

/// <summary>What a decode step takes: queries and new tokens, where these go and how all turn. Page-locked memory, and its copy on the device.</summary>
/// <remarks>
/// The host writes; <see cref="Upload"/>, <see cref="Append"/> and <see cref="Arrange"/> enqueue, and can be captured: a replay takes what
/// is written by then. Nothing is written before the last <see cref="Upload"/> has ended.
/// </remarks>
internal interface IStepInput : IDisposable
{
    /// <summary>[batch, query_len, query_heads, head_dim], not rotated.</summary>
    Span<float> Queries { get; }

    /// <summary>[tokens, kv_heads, head_dim], not rotated.</summary>
    Span<float> Keys { get; }

    /// <summary>[tokens, kv_heads, value_dim]; empty when values lie in the keys.</summary>
    Span<float> Values { get; }

    /// <summary>The queries' copy on the device.</summary>
    Region DeviceQueries { get; }

    /// <summary>The keys' copy on the device.</summary>
    Region DeviceKeys { get; }

    /// <summary>The values' copy on the device.</summary>
    Region DeviceValues { get; }

    /// <summary>Writes where the tokens go, and the angles by which their keys turn.</summary>
    /// <param name="places">[tokens]</param>
    /// <param name="rotary">[tokens]; null where nothing turns.</param>
    void Place(ReadOnlySpan<TokenPlace> places, RotaryAngles? rotary);

    /// <summary>Writes the angles by which the queries turn.</summary>
    /// <param name="rotary">[batch, query_len]</param>
    void Turn(RotaryAngles rotary);

    /// <summary>Enqueues the copy of all that was written to the device.</summary>
    void Upload();

    /// <summary>Enqueues the copy of places and angles alone, which may be written again at once; for tensors that the device has. It cannot be captured.</summary>
    void UploadPlaces();

    /// <summary>Enqueues <see cref="IDevice.Append"/> of the tokens.</summary>
    void Append(KeyValueShard shard);

    /// <summary>Enqueues <see cref="IDevice.ArrangeQueries"/>.</summary>
    void Arrange(QueryBlock into);
}

/// <summary>The tensors of a step that may be of another type than fp32.</summary>
internal enum StepTensor
{
    Query,
    Key,
    Value,
    Output,
}
