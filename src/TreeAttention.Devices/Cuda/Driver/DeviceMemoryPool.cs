using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda.Driver;

/// <summary>Memory of one GPU that is given out again and again: the driver is asked only when nothing of the size is free.</summary>
/// <remarks>
/// Asking the driver waits for the whole device, so it must not happen inside a step. A freed block may still be in use by
/// enqueued work; whoever gets it next uses it on the same stream, so later. When the driver has no more, what is free
/// goes back to it first. Blocks that captured graphs may work on stay aside until the graphs are gone.
/// </remarks>
internal sealed unsafe class DeviceMemoryPool(CudaContext context, MemoryAccount account) : IDisposable
{
    private const long SmallStep = 256;
    private const long LargeStep = 2 << 20;
    private readonly Dictionary<long, Stack<nint>> _free = [];
    private readonly Dictionary<nint, Block> _blocks = [];
    private readonly List<MemoryHold> _holds = [];
    private readonly List<(nint Address, Block Block)> _held = [];
    private long _reserved;
    private long _taken;

    /// <summary>Bytes taken from the driver.</summary>
    internal long ReservedBytes => _reserved;

    /// <summary>Bytes of blocks that nobody has: they go back to the driver when it has no others.</summary>
    internal long FreeBytes => _free.Sum(size => size.Key * size.Value.Count);

    /// <summary>Takes a block; its contents are anything.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    internal nint Take(long bytes)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        long size = SizeOf(bytes);
        nint address = _free.TryGetValue(size, out Stack<nint>? stack) && stack.TryPop(out nint kept) ? kept : AllocateBlock(size);
        _blocks[address] = new Block(size, bytes, ++_taken);
        account.Take(bytes);
        return address;
    }

    /// <summary>Gives a block back.</summary>
    /// <exception cref="ArgumentException">It was not taken from this pool, or given back before.</exception>
    internal void Give(nint address)
    {
        if (!_blocks.Remove(address, out Block block))
        {
            throw new ArgumentException($"This device has allocated nothing at {address:x}, or it was freed before.", nameof(address));
        }

        account.Return(block.Bytes);
        Keep(address, block);
    }

    /// <summary>Begins a capture: no block that is taken now or until <see cref="EndOfTaking"/> is given out a second time before <see cref="Release"/>.</summary>
    internal MemoryHold Hold()
    {
        var hold = new MemoryHold();
        _holds.Add(hold);
        return hold;
    }

    /// <summary>Ends a capture: blocks that are taken from now on are none of its.</summary>
    internal void EndOfTaking(MemoryHold hold) => hold.LastTaken = _taken;

    /// <summary>The graph is gone.</summary>
    internal void Release(MemoryHold hold)
    {
        _holds.Remove(hold);
        (nint Address, Block Block)[] held = [.. _held];
        _held.Clear();
        foreach ((nint address, Block block) in held)
        {
            Keep(address, block);
        }
    }

    public void Dispose()
    {
        ReleaseFree();
        foreach (nint address in _blocks.Keys)
        {
            _ = CudaDriver.cuMemFree_v2((ulong)address);
        }

        foreach ((nint address, _) in _held)
        {
            _ = CudaDriver.cuMemFree_v2((ulong)address);
        }

        _blocks.Clear();
        _held.Clear();
    }

    private static long SizeOf(long bytes)
    {
        long step = bytes < LargeStep ? SmallStep : LargeStep;
        return Math.Max(step, (bytes + step - 1) / step * step);
    }

    private void Keep(nint address, Block block)
    {
        if (_holds.Exists(hold => block.Number <= hold.LastTaken))
        {
            _held.Add((address, block));
            return;
        }

        if (!_free.TryGetValue(block.Size, out Stack<nint>? stack))
        {
            _free.Add(block.Size, stack = new Stack<nint>());
        }

        stack.Push(address);
    }

    private nint AllocateBlock(long size)
    {
        context.RefuseWhileCapturing("An allocation");
        ulong address;
        CUresult result = CudaDriver.cuMemAlloc_v2(&address, (nuint)size);
        if (result == CUresult.CUDA_ERROR_OUT_OF_MEMORY && _free.Count > 0)
        {
            context.Synchronize();
            ReleaseFree();
            result = CudaDriver.cuMemAlloc_v2(&address, (nuint)size);
        }

        if (result == CUresult.CUDA_ERROR_OUT_OF_MEMORY)
        {
            throw new FaultException(
                FaultCode.OutOfMemory,
                $"{size:N0} bytes of GPU memory could not be allocated: the GPU has {context.TotalMemory():N0}, of which this rank holds "
                + $"{_reserved:N0}. Use more ranks on more GPUs, a smaller {Setting.StorageType}, or a shorter context.");
        }

        CudaFaults.Check(result, "an allocation");
        _reserved += size;
        return (nint)address;
    }

    private void ReleaseFree()
    {
        foreach ((long size, Stack<nint> stack) in _free)
        {
            while (stack.TryPop(out nint address))
            {
                _ = CudaDriver.cuMemFree_v2((ulong)address);
                _reserved -= size;
            }
        }

        _free.Clear();
    }

    // Size: what the driver gave; Bytes: what was asked for; Number: counts what was taken.
    private readonly record struct Block(long Size, long Bytes, long Number);
}

/// <summary>What keeps a pool from giving out blocks again that a captured graph works on: all that were taken before the capture ended.</summary>
internal sealed class MemoryHold
{
    /// <summary>The number of the last block that was taken before the capture ended; all while it lasts.</summary>
    internal long LastTaken { get; set; } = long.MaxValue;
}
