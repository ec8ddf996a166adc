using System;

namespace TreeAttention.Distributed;

/// <summary>What a decode step takes: queries and new tokens, where these go and how all turn. Page-locked memory, and its copy on the device.</summary>
/// <remarks>
/// The host writes; <see cref="Upload"/>, <see cref="Append"/> and <see cref="Arrange"/> enqueue, and can be captured: a replay takes what
/// is written by then. Nothing is written before the last <see cref="Upload"/> has ended.
/// </remarks>
public interface IStepInput : IDisposable
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
