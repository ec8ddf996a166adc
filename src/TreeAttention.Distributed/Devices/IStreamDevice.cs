using System;

namespace TreeAttention.Distributed;

/// <summary>A GPU whose stream a transport may enqueue on: its operations then take their place in the order of the device's work, and nobody waits.</summary>
public interface IStreamDevice : IStagingDevice
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
