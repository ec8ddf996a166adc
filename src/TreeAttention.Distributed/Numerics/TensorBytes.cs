using System;
using System.Collections.Generic;

namespace TreeAttention.Distributed.Numerics;

/// <summary>Where the bytes of a tensor come from when its memory may vanish: a mapped file that another program shortens.</summary>
internal interface ITensorSource
{
    /// <summary>Copies bytes of the tensor's memory, without touching that memory.</summary>
    /// <param name="address">The first byte's address; it and the last may lie outside the memory, where nothing is copied.</param>
    /// <param name="into">Receives the bytes.</param>
    /// <exception cref="FaultException">Bytes are gone, or cannot be read.</exception>
    void Read(nint address, Span<byte> into);
}

/// <summary>Reads bytes of a tensor: in place where its memory stays, in blocks where it comes from a source.</summary>
/// <remarks>
/// Blocks are kept, so that rows in any order read the file about once: 2 MiB of them, and up to 64 MiB for a tensor whose last axis does
/// not run fastest, whose rows are gathered from all over the file. Not safe for several threads.
/// </remarks>
internal sealed unsafe class TensorBytes(TensorView view)
{
    private const int BlockBytes = 1 << 16;

    private readonly ITensorSource? _source = view.Source;
    private readonly int _mostBlocks = view.Rank == 0 || view.Strides[^1] == 1 ? 1 << 5 : 1 << 10;
    private readonly Dictionary<long, byte[]> _blocks = [];
    private readonly Stack<byte[]> _free = [];
    private byte[] _joined = [];
    private byte[] _block = [];
    private long _at = -1;

    /// <summary>So many bytes from an address of the view's memory on; valid until the next call.</summary>
    /// <exception cref="FaultException">The source has lost them.</exception>
    public ReadOnlySpan<byte> At(nint address, int count)
    {
        if (_source is null || count == 0)
        {
            return new ReadOnlySpan<byte>((void*)address, count);
        }

        int first = (int)(address % BlockBytes);
        return first + count <= BlockBytes ? BlockOf(address / BlockBytes).AsSpan(first, count) : Join(address, count);
    }

    private ReadOnlySpan<byte> Join(nint address, int count)
    {
        if (_joined.Length < count)
        {
            _joined = new byte[count];
        }

        for (int done = 0; done < count;)
        {
            int first = (int)((address + done) % BlockBytes);
            int part = Math.Min(count - done, BlockBytes - first);
            BlockOf((address + done) / BlockBytes).AsSpan(first, part).CopyTo(_joined.AsSpan(done));
            done += part;
        }

        return _joined.AsSpan(0, count);
    }

    private byte[] BlockOf(long block)
    {
        if (block == _at)
        {
            return _block;
        }

        if (!_blocks.TryGetValue(block, out byte[]? bytes))
        {
            bytes = Fetch(block);
        }

        (_at, _block) = (block, bytes);
        return bytes;
    }

    private byte[] Fetch(long block)
    {
        if (_blocks.Count == _mostBlocks)
        {
            foreach (byte[] old in _blocks.Values)
            {
                _free.Push(old);
            }

            _blocks.Clear();
        }

        if (!_free.TryPop(out byte[]? bytes))
        {
            bytes = GC.AllocateUninitializedArray<byte>(BlockBytes);
        }

        _source!.Read((nint)(block * BlockBytes), bytes);
        _blocks.Add(block, bytes);
        return bytes;
    }
}
