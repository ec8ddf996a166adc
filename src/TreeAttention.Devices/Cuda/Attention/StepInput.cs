using System;
using System.Runtime.CompilerServices;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cuda.Attention;

/// <summary>The input of captured steps: one stretch of page-locked memory and one of the device, alike, and one copy between them.</summary>
internal sealed class StepInput : IStepInput
{
    private const int Alignment = 16;

    private readonly CudaContext _context;
    private readonly DeviceMemoryPool _pool;
    private readonly DeviceCopies _copies;
    private readonly TokenLaunch _launch;
    private readonly AttentionShape _shape;
    private readonly int _tokens;
    private readonly Part _queries;
    private readonly Part _keys;
    private readonly Part _values;
    private readonly Part _places;
    private readonly Part _keyCosine;
    private readonly Part _keySine;
    private readonly Part _queryCosine;
    private readonly Part _querySine;
    private readonly int _pairs;
    private readonly bool _isInterleaved;
    private readonly PinnedMemory _host;
    private readonly Region _device;

    /// <inheritdoc cref="IStreamDevice.CreateStepInput"/>
    internal StepInput(
        CudaContext context, DeviceMemoryPool pool, DeviceCopies copies, TokenLaunch launch, AttentionShape shape, int tokens, ShardPlan plan,
        RotaryOptions? rotary)
    {
        (_context, _pool, _copies, _launch, _shape, _tokens) = (context, pool, copies, launch, shape, tokens);
        int queries = shape.Batch * shape.QueryLength;
        (_pairs, _isInterleaved) = rotary is null ? (0, false) : (rotary.Dim / 2, rotary.Interleaved);
        long bytes = 0;
        _queries = Take(ref bytes, (long)queries * shape.QueryHeads * shape.HeadDim, ElementType.Float32);
        _keys = Take(ref bytes, (long)tokens * shape.KvHeads * shape.HeadDim, ElementType.Float32);
        _values = Take(ref bytes, plan.ValuesInKeys ? 0 : (long)tokens * shape.KvHeads * shape.ValueDim, ElementType.Float32);
        _places = Take(ref bytes, (long)tokens * Unsafe.SizeOf<TokenEntry>(), ElementType.Byte);
        _keyCosine = Take(ref bytes, (long)tokens * _pairs, ElementType.Float32);
        _keySine = Take(ref bytes, (long)tokens * _pairs, ElementType.Float32);
        _queryCosine = Take(ref bytes, (long)queries * _pairs, ElementType.Float32);
        _querySine = Take(ref bytes, (long)queries * _pairs, ElementType.Float32);
        _host = new PinnedMemory(bytes, ElementType.Byte);
        _device = new Region(pool.Take(bytes), bytes, ElementType.Byte, MemoryPlace.Device);
    }

    /// <inheritdoc/>
    public Span<float> Queries => In(_host.Region, _queries).AsSpan<float>();

    /// <inheritdoc/>
    public Span<float> Keys => In(_host.Region, _keys).AsSpan<float>();

    /// <inheritdoc/>
    public Span<float> Values => In(_host.Region, _values).AsSpan<float>();

    /// <inheritdoc/>
    public Region DeviceQueries => In(_device, _queries);

    /// <inheritdoc/>
    public Region DeviceKeys => In(_device, _keys);

    /// <inheritdoc/>
    public Region DeviceValues => In(_device, _values);

    /// <inheritdoc/>
    public void Place(ReadOnlySpan<TokenPlace> places, RotaryAngles? rotary)
    {
        TokenLaunch.Fill(places, In(_host.Region, _places).AsSpan<TokenEntry>());
        if (rotary is not null)
        {
            Write(rotary, _keyCosine, _keySine);
        }
    }

    /// <inheritdoc/>
    public void Turn(RotaryAngles rotary) => Write(rotary, _queryCosine, _querySine);

    /// <inheritdoc/>
    public void Upload()
    {
        _context.Enter();
        _copies.Copy(_host.Region, _device);
    }

    /// <inheritdoc/>
    public void UploadPlaces()
    {
        _context.Enter();
        var rest = new Part(_places.First, _host.Region.Bytes - _places.First, ElementType.Byte);
        _copies.Upload<byte>(In(_host.Region, rest).AsSpan<byte>(), In(_device, rest).Address);
    }

    /// <inheritdoc/>
    public void Append(KeyValueShard shard)
    {
        _context.Enter();
        _launch.Append(
            DeviceKeys, DeviceValues, In(_device, _places).Address, _tokens, AnglesAt(_keyCosine, _keySine), shard);
    }

    /// <inheritdoc/>
    public void Arrange(QueryBlock into)
    {
        _context.Enter();
        _launch.ArrangeQueries(_shape, DeviceQueries, AnglesAt(_queryCosine, _querySine), into);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _context.Drain(); // a copy may still read
        _host.Dispose();
        _pool.Give(_device.Address);
    }

    private static Part Take(ref long bytes, long count, ElementType type)
    {
        var part = new Part(bytes, type.BytesFor(count), type);
        bytes += (part.Bytes + Alignment - 1) / Alignment * Alignment;
        return part;
    }

    private static Region In(Region whole, Part part) =>
        whole with { Address = whole.Address + (nint)part.First, Bytes = part.Bytes, Type = part.Type };

    private void Write(RotaryAngles rotary, Part cosine, Part sine)
    {
        rotary.Cosine.CopyTo(In(_host.Region, cosine).AsSpan<float>());
        rotary.Sine.CopyTo(In(_host.Region, sine).AsSpan<float>());
    }

    private DeviceAngles AnglesAt(Part cosine, Part sine) => new(In(_device, cosine).Address, In(_device, sine).Address, _pairs, _isInterleaved);

    // First: bytes from the beginning.
    private readonly record struct Part(long First, long Bytes, ElementType Type);
}

/// <summary>cos and sin of rows of tokens in device memory.</summary>
/// <param name="Cosine">[tokens, pairs]</param>
/// <param name="Sine">[tokens, pairs]</param>
/// <param name="Pairs">Pairs of dimensions that turn; 0: none.</param>
/// <param name="IsInterleaved">A pair is 2i and 2i + 1, not i and i + pairs.</param>
internal readonly record struct DeviceAngles(nint Cosine, nint Sine, int Pairs, bool IsInterleaved);
