using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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

        AttentionShape shape = shard.Plan.Shape;
        long entryBytes = Fill(tokens.Places.AsSpan(0, tokens.Count));
        nint places = Scratch(entryBytes + AngleBytes(tokens.Rotary));
        copies.Upload<TokenEntry>(_entries.AsSpan(0, tokens.Count), places);
        (nint cosine, nint sine, int pairs) = UploadAngles(tokens.Rotary, places + (nint)entryBytes);
        KernelProgram program = ProgramFor(shard.Plan.Type);
        Launch(program, tokens.Count * shape.KvHeads, new AppendArguments
        {
            Keys = tokens.Keys.Address,
            Values = shard.Plan.ValuesInKeys ? 0 : tokens.Values.Address,
            Places = places,
            Cosine = cosine,
            Sine = sine,
            Scales = tables.Of(shard.Plan.Scales?.OfStorage(shard.Plan.ValuesInKeys)),
            Contents = shard.Contents.Address,
            Limits = shard.Growing.Address,
            Tokens = tokens.Count,
            KvHeads = shape.KvHeads,
            HeadDim = shape.HeadDim,
            ValueDim = shape.ValueDim,
            Capacity = PageSpan.Keys,
            RotaryPairs = pairs,
            IsInterleaved = tokens.Rotary is { Options.Interleaved: true } ? 1 : 0,
        });
    }

    /// <summary><see cref="IDevice.ArrangeQueries"/></summary>
    internal void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into)
    {
        int rows = shape.Batch * shape.QueryLength * shape.QueryHeads;
        if (rows == 0)
        {
            return;
        }

        (nint cosine, nint sine, int pairs) = UploadAngles(rotary, Scratch(AngleBytes(rotary)));
        Launch(_rotate, rows, new RotateArguments
        {
            From = queries.Address,
            Into = into.Values.Address,
            Cosine = cosine,
            Sine = sine,
            Rows = rows,
            QueryHeads = shape.QueryHeads,
            QueryLength = shape.QueryLength,
            HeadDim = shape.HeadDim,
            RotaryPairs = pairs,
            IsInterleaved = rotary is { Options.Interleaved: true } ? 1 : 0,
        });
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

    private unsafe long Fill(ReadOnlySpan<TokenPlace> places)
    {
        if (_entries.Length < places.Length)
        {
            _entries = new TokenEntry[places.Length];
        }

        for (int token = 0; token < places.Length; token++)
        {
            TokenPlace place = places[token];
            _entries[token] = new TokenEntry { KeyOffset = place.KeyOffset, ValueOffset = place.ValueOffset, Slot = place.Slot };
        }

        return (long)places.Length * sizeof(TokenEntry);
    }

    private (nint Cosine, nint Sine, int Pairs) UploadAngles(RotaryAngles? rotary, nint to)
    {
        if (rotary is null || rotary.Count == 0)
        {
            return (0, 0, 0);
        }

        nint sine = to + ((nint)rotary.Cosine.Length * sizeof(float));
        copies.Upload(rotary.Cosine, to);
        copies.Upload(rotary.Sine, sine);
        return (to, sine, rotary.Cosine.Length / rotary.Count);
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
