using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cuda.Attention;

/// <summary>Enqueues what stores new tokens and arranges queries; brings their places and angles to the device. Nothing is read back.</summary>
internal sealed class TokenLaunch(KernelFunctions kernels, DeviceTables tables, DeviceMemoryPool pool, DeviceCopies copies) : IDisposable
{
    private const int Threads = 128;
    private const int RowsPerBlock = 4;
    private const string Source = "append.cu";

    private readonly Dictionary<ElementType, KernelProgram> _append = [];
    private readonly KernelProgram _rotate = new(Source, ["rotate_queries"], true);
    private TokenEntry[] _entries = [];
    private nint _scratch;
    private long _scratchBytes;

    /// <summary><see cref="IDevice.Append"/></summary>
    internal void Append(in TokenBlock tokens, KeyValueShard shard)
    {
        if (tokens.Count == 0)
        {
            return;
        }

        if (_entries.Length < tokens.Count)
        {
            _entries = new TokenEntry[tokens.Count];
        }

        Span<TokenEntry> entries = _entries.AsSpan(0, tokens.Count);
        Fill(tokens.Places, entries);
        nint entryBytes = MemoryMarshal.AsBytes(entries).Length;
        nint places = Scratch(entryBytes + AngleBytes(tokens.Rotary));
        copies.Upload<TokenEntry>(entries, places);
        Append(tokens.Keys, tokens.Values, places, tokens.Count, Upload(tokens.Rotary, places + entryBytes), shard);
    }

    /// <summary>The same, of tokens whose places and angles lie in device memory too.</summary>
    /// <param name="keys">[tokens, kv_heads, head_dim]</param>
    /// <param name="values">[tokens, kv_heads, value_dim]</param>
    /// <param name="places">[tokens] entries, as <see cref="Fill"/> makes them.</param>
    /// <param name="tokens">Tokens.</param>
    /// <param name="angles">[tokens]</param>
    /// <param name="shard">The cache.</param>
    internal void Append(Region keys, Region values, nint places, int tokens, in DeviceAngles angles, KeyValueShard shard)
    {
        AttentionShape shape = shard.Plan.Shape;
        KernelProgram program = ProgramFor(shard.Plan.Type);
        Launch(program, tokens * shape.KvHeads, new AppendArguments
        {
            Keys = keys.Address,
            Values = shard.Plan.ValuesInKeys ? 0 : values.Address,
            Places = places,
            Cosine = angles.Cosine,
            Sine = angles.Sine,
            Scales = tables.Of(shard.Plan.Scales?.OfStorage(shard.Plan.ValuesInKeys)),
            Contents = shard.Contents.Address,
            Limits = shard.Growing.Address,
            Tokens = tokens,
            KvHeads = shape.KvHeads,
            HeadDim = shape.HeadDim,
            ValueDim = shape.ValueDim,
            Capacity = PageSpan.Keys,
            RotaryPairs = angles.Pairs,
            IsInterleaved = angles.IsInterleaved ? 1 : 0,
        });
    }

    /// <summary><see cref="IDevice.ArrangeQueries"/></summary>
    internal void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into)
    {
        if (queries.Bytes > 0)
        {
            ArrangeQueries(shape, queries, Upload(rotary, Scratch(AngleBytes(rotary))), into);
        }
    }

    /// <summary>The same with angles that lie in device memory too.</summary>
    internal void ArrangeQueries(AttentionShape shape, Region queries, in DeviceAngles angles, QueryBlock into)
    {
        int rows = shape.Batch * shape.QueryLength * shape.QueryHeads;
        Launch(_rotate, rows, new RotateArguments
        {
            From = queries.Address,
            Into = into.Values.Address,
            Cosine = angles.Cosine,
            Sine = angles.Sine,
            Rows = rows,
            QueryHeads = shape.QueryHeads,
            QueryLength = shape.QueryLength,
            HeadDim = shape.HeadDim,
            RotaryPairs = angles.Pairs,
            IsInterleaved = angles.IsInterleaved ? 1 : 0,
        });
    }

    /// <summary>Where tokens go, as the kernels read it.</summary>
    internal static void Fill(ReadOnlySpan<TokenPlace> places, Span<TokenEntry> into)
    {
        for (int token = 0; token < into.Length; token++)
        {
            TokenPlace place = places[token];
            into[token] = new TokenEntry { KeyOffset = place.KeyOffset, ValueOffset = place.ValueOffset, Slot = place.Slot };
        }
    }

    public void Dispose()
    {
        if (_scratch != 0)
        {
            pool.Give(_scratch);
            _scratch = 0;
        }
    }

    private static long AngleBytes(RotaryAngles? rotary) => rotary is null ? 0 : 2L * rotary.Cosine.Length * sizeof(float);

    private DeviceAngles Upload(RotaryAngles? rotary, nint to)
    {
        if (rotary is null || rotary.Count == 0)
        {
            return default;
        }

        nint sine = to + ((nint)rotary.Cosine.Length * sizeof(float));
        copies.Upload(rotary.Cosine, to);
        copies.Upload(rotary.Sine, sine);
        return new DeviceAngles(to, sine, rotary.Cosine.Length / rotary.Count, rotary.Options.Interleaved);
    }

    private KernelProgram ProgramFor(ElementType type)
    {
        if (!_append.TryGetValue(type, out KernelProgram? program))
        {
            program = new KernelProgram(Source, [$"append_tokens<{AttendKernel.ElementName(type)}>"], true);
            _append.Add(type, program);
        }

        return program;
    }

    private void Launch<T>(KernelProgram program, int rows, in T arguments)
        where T : unmanaged
    {
        if (rows == 0)
        {
            return;
        }

        nint function = kernels.Get(program, 0, 0);
        kernels.Launch(function, ((rows + RowsPerBlock - 1) / RowsPerBlock, 1, 1), Threads, 0, arguments, program.Expressions[0]);
    }

    private nint Scratch(long bytes)
    {
        if (_scratchBytes < bytes)
        {
            Dispose();
            _scratchBytes = 0;
            _scratch = pool.Take(bytes);
            _scratchBytes = bytes;
        }

        return _scratch;
    }
}
