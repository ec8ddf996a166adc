using System;
using System.Collections.Generic;
using System.IO;
using TreeAttention.Devices.Cuda.Attention;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cuda;

/// <summary>One NVIDIA GPU as a device: kernels compiled when they are first needed, one stream, memory from a pool.</summary>
/// <remarks>
/// Work is enqueued in order; copies to ordinary host memory wait for it, all else does not. Rows whose scores fp32 cannot
/// hold exactly enough are found and computed again in double precision on the device. Several devices of one process may share a
/// GPU. Calls come from one thread.
/// </remarks>
internal sealed class CudaDevice : IStreamDevice
{
    private const int MostBlocks = 65_535; // of a grid in its second and third dimension
    private const long MostScratchBytes = 256 << 20;

    private readonly CudaContext _context;
    private readonly DeviceMemoryPool _pool;
    private readonly DeviceCopies _copies;
    private readonly KernelFunctions _kernels;
    private readonly StateKernels _states;
    private readonly DeviceTables _tables;
    private readonly AttendLaunch _launch;
    private readonly LaneAttention _lanes;
    private readonly TokenLaunch _tokens;
    private readonly EdgeKernels _edge;
    private readonly CudaOrder _order;
    private readonly PinnedRegions _pinned = new();
    private readonly bool _isEmulated;

    /// <summary>A device object over a GPU.</summary>
    /// <param name="platform">The driver and the compiler.</param>
    /// <param name="ordinal">Which of the platform's GPUs.</param>
    /// <exception cref="FaultException">No such GPU, or too old a one (69), out of memory (71), the GPU failed (202).</exception>
    public CudaDevice(CudaPlatform platform, int ordinal = 0)
        : this(platform, ordinal, MostScratchBytes)
    {
    }

    /// <summary>A device object that keeps at most so many bytes of split states.</summary>
    internal CudaDevice(CudaPlatform platform, int ordinal, long scratchBytes)
    {
        CudaOptions options = platform.Options;
        _isEmulated = options.IsEmulated;
        _context = new CudaContext(ordinal);
        _pool = new DeviceMemoryPool(_context, Memory);
        _copies = new DeviceCopies(_context);
        var compiler = new KernelCompiler(_context.Architecture);
        _kernels = new KernelFunctions(_context, new KernelCache(options.CacheFolder, compiler, IdentityOf(options)));
        _states = new StateKernels(_kernels);
        _tables = new DeviceTables(_pool, _copies);
        _launch = new AttendLaunch(_context, _kernels, _states, _tables, _pool, _copies, scratchBytes);
        _lanes = new LaneAttention(_launch, _states, _tables, _pool, _copies);
        _tokens = new TokenLaunch(_kernels, _tables, _pool, _copies);
        _edge = new EdgeKernels(_kernels, _tables);
        _order = new CudaOrder(_context);
        Description = $"{_context.Name}, sm_{_context.Architecture}";
    }

    /// <inheritdoc/>
    public string Name => "cuda";

    /// <inheritdoc/>
    public string Description { get; }

    /// <inheritdoc/>
    public MemoryPlace Place => MemoryPlace.Device;

    /// <inheritdoc/>
    public MemoryAccount Memory { get; } = new();

    /// <inheritdoc/>
    public long AvailableBytes
    {
        get
        {
            _context.Enter();
            return CudaContext.FreeMemory() + _pool.FreeBytes;
        }
    }

    /// <inheritdoc/>
    public string BusAddress => _context.BusAddress;

    /// <inheritdoc/>
    public Action? WhileWaiting
    {
        get => _context.WhileWaiting;
        set => _context.WhileWaiting = value;
    }

    /// <summary>Kernels that the host enqueued one by one.</summary>
    internal long Launches => _kernels.Launches;

    /// <summary>How often the host waited for the enqueued work.</summary>
    internal long Waits => _context.Waits;

    /// <summary>Graphs that were captured.</summary>
    internal long Captures { get; private set; }

    /// <summary>Bytes that the driver gave.</summary>
    internal long ReservedBytes => _pool.ReservedBytes;

    /// <inheritdoc/>
    public Region Allocate(long bytes, ElementType type)
    {
        _context.Enter();
        nint address = _pool.Take(bytes);
        _copies.Fill(address, 0, bytes);
        return new Region(address, bytes, type, MemoryPlace.Device);
    }

    /// <inheritdoc/>
    public void Free(Region region)
    {
        _context.Enter();
        _pool.Give(region.Address);
    }

    /// <inheritdoc/>
    public Region AllocatePinned(long bytes, ElementType type)
    {
        _context.Enter();
        _context.RefuseWhileCapturing("An allocation");
        return _pinned.Allocate(bytes, type);
    }

    /// <inheritdoc/>
    public void FreePinned(Region region)
    {
        _context.Enter();
        _context.Synchronize();
        _pinned.Free(region);
    }

    /// <inheritdoc/>
    public nint EnterStream()
    {
        _context.Enter();
        return _context.Stream;
    }

    /// <inheritdoc/>
    public void Follow(nint stream)
    {
        _context.Enter();
        _order.Follow(stream);
    }

    /// <inheritdoc/>
    public void Precede(nint stream)
    {
        _context.Enter();
        _order.Precede(stream);
    }

    /// <inheritdoc/>
    public IReplay Capture(Action work)
    {
        _context.Enter();
        Captures++;
        return new CudaReplay(_context, _pool, work);
    }

    /// <inheritdoc/>
    public long Refresh(ShardPlan plan)
    {
        _context.Enter();
        return _tables.Refresh(plan);
    }

    /// <inheritdoc/>
    public IStepInput CreateStepInput(AttentionShape shape, int tokens, ShardPlan plan, RotaryOptions? rotary)
    {
        _context.Enter();
        return new StepInput(_context, _pool, _copies, _tokens, shape, tokens, plan, rotary);
    }

    /// <inheritdoc/>
    public void EndReplays() => _context.Replays.ForEach(replay => replay.End());

    /// <inheritdoc/>
    public IStreamTimer CreateTimer() => new CudaTimer(_context);

    /// <inheritdoc/>
    public IPeerWindow CreatePeerWindow(int rank, int ranks, long bytesPerRank)
    {
        _context.Enter();
        return new CudaPeerWindow(_context, _pool, rank, ranks, bytesPerRank);
    }

    /// <inheritdoc/>
    public void Copy(Region from, Region to)
    {
        _context.Enter();
        _copies.Copy(from, to);
    }

    /// <inheritdoc/>
    public void Clear(PartialAttention partial)
    {
        _context.Enter();
        _states.Clear(partial);
    }

    /// <inheritdoc/>
    public void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into)
    {
        Begin(problem, queries, into);
        _launch.Attend(problem, queries, shard, into);
    }

    /// <inheritdoc/>
    public void AttendLanes(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard, ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into)
    {
        foreach (PartialAttention partial in into)
        {
            Begin(problem, queries, partial);
        }

        _lanes.Attend(problem, queries, shard, nodes, into);
    }

    /// <inheritdoc/>
    public void Merge(PartialAttention into, PartialAttention from)
    {
        _context.Enter();
        if (into.Rows != from.Rows || into.ValueDim != from.ValueDim)
        {
            throw new ShapeMismatchException(
                $"Cannot merge a partial of {from.Rows} rows × {from.ValueDim} into one of {into.Rows} rows × {into.ValueDim}: both must cover "
                + $"the same queries. Start every rank with the same query tensor and {Setting.ValueDim}.");
        }

        if (from.Region.Place == MemoryPlace.Device)
        {
            MergeAt(into, from.Region.Address);
            return;
        }

        nint uploaded = _pool.Take(from.Region.Bytes);
        _copies.Copy(from.Region, from.Region with { Address = uploaded, Place = MemoryPlace.Device });
        MergeAt(into, uploaded);
        _pool.Give(uploaded);
    }

    /// <inheritdoc/>
    public void Weigh(PartialAttention partial, Region top, float unit, Region numerator, Region denominator)
    {
        _context.Enter();
        _states.Weigh(partial, top, unit, numerator, denominator);
    }

    /// <inheritdoc/>
    public void Unweigh(Region top, float unit, Region numerator, Region denominator, PartialAttention into)
    {
        _context.Enter();
        _states.Unweigh(top, unit, numerator, denominator, into);
    }

    /// <inheritdoc/>
    public void Append(in TokenBlock tokens, KeyValueShard shard)
    {
        _context.Enter();
        _tables.MakeRoom();
        _tokens.Append(in tokens, shard);
    }

    /// <inheritdoc/>
    public void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into)
    {
        _context.Enter();
        _tokens.ArrangeQueries(shape, queries, rotary, into);
    }

    /// <inheritdoc/>
    public void Finish(AttentionProblem problem, int[] indices, PartialAttention state, Region output, Region lse)
    {
        AttentionEdge.RequireSizes(problem.Shape, indices.Length, output.Count, lse.Count);
        _context.Enter();
        _edge.Finish(problem, indices, state, output, lse);
    }

    /// <inheritdoc/>
    public void Convert(Region from, Region to)
    {
        ElementConversion.RequireSameCount(from, to);
        _context.Enter();
        _edge.Convert(from, to);
    }

    /// <inheritdoc/>
    public void Synchronize()
    {
        _context.Enter();
        _context.Synchronize();
    }

    /// <summary>Runs every operation that the kernels are built of, each alone, and holds it against golden data.</summary>
    public IReadOnlyList<PrimitiveCheck> CheckPrimitives()
    {
        _context.Enter();
        return new PrimitiveProbes(_kernels, _pool, _copies).Run();
    }

    /// <summary>Measures what this GPU can do at most, with its own stream and memory; disposed before the device.</summary>
    /// <param name="type">Storage type whose multiplications are measured.</param>
    /// <param name="bytes">Memory that is read.</param>
    internal IMachineCeilings CreateCeilings(ElementType type, long bytes)
    {
        _context.Enter();
        return new GpuCeilings(
            _context, _kernels, _pool, _copies, type, _isEmulated ? CeilingWork.OfEmulation : CeilingWork.OfDevice(bytes));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _context.Drain();
        _launch.Dispose();
        _tokens.Dispose();
        _order.Dispose();
        _kernels.Dispose();
        _pinned.Dispose();
        _copies.Dispose();
        _pool.Dispose();
        _context.Dispose();
    }

    // A compiler that changed, or an emulation that was built again, makes other images of the same text.
    private static string IdentityOf(CudaOptions options)
    {
        string file = options.IsEmulated && File.Exists(options.CompilerCandidates[0])
            ? $"{new FileInfo(options.CompilerCandidates[0]).Length} {File.GetLastWriteTimeUtc(options.CompilerCandidates[0]).Ticks}"
            : "";
        return $"{(options.IsEmulated ? "emulated" : "nvrtc")} {KernelCompiler.Version} {file}";
    }

    private void Begin(AttentionProblem problem, QueryBlock queries, PartialAttention into)
    {
        AttentionShape shape = problem.Shape;
        if (shape.Batch > MostBlocks || shape.KvHeads > MostBlocks)
        {
            throw new FaultException(
                FaultCode.Unavailable,
                $"A GPU attends to {MostBlocks:N0} batch rows and KV heads at once, not to {shape.Batch:N0} and {shape.KvHeads:N0}. Split the batch, or run "
                + $"with {Setting.DeviceCpu}.")
            { IsAgreed = true };
        }

        int rows = queries.RowsFor(shape);
        if (into.Rows != rows || into.ValueDim != shape.ValueDim)
        {
            throw new ShapeMismatchException(
                $"Queries of {rows} rows × {shape.ValueDim} do not fit a partial of {into.Rows} rows × {into.ValueDim}.");
        }

        _context.Enter();
        if (!_context.IsCapturing)
        {
            _tables.MakeRoom();
        }
    }

    private void MergeAt(PartialAttention into, nint from) =>
        _states.Merge(into.Region.Address, from, into.Region.Count, 1, into.Rows, into.ValueDim);
}
