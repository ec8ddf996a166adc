using System;
using System.Collections.Generic;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cuda.Attention;

/// <summary>Enqueues attention over ranges of pages: chooses the kernel and the grid, fills the arguments, keeps the scratch of split states.</summary>
/// <remarks>
/// After the fast kernel the precise one runs over the same splits and replaces the states of rows that need it: which those
/// are is decided on the device, so the host reads nothing.
/// </remarks>
/// <param name="context">The GPU.</param>
/// <param name="kernels">Its kernels.</param>
/// <param name="states">Those over states.</param>
/// <param name="tables">What the kernels read beside tensors.</param>
/// <param name="pool">Memory.</param>
/// <param name="copies">Copies.</param>
/// <param name="mostScratchBytes">Split states beyond this would cost more memory than their accuracy and parallelism are worth.</param>
internal sealed class AttendLaunch(
    CudaContext context, KernelFunctions kernels, StateKernels states, DeviceTables tables, DeviceMemoryPool pool, DeviceCopies copies,
    long mostScratchBytes) : IDisposable
{
    // Blocks that keep every multiprocessor busy while some of its own wait for memory.
    private const int BlocksPerMultiprocessor = 2;

    // Running sums are closed after so many pages: rounding errors add up over 16,384 keys, not over the context.
    private const int ChapterPages = 32;

    // Sums of such values over 2^28 keys stay inside fp32's range.
    private const float LargestFastValue = 1e30f;

    private readonly Dictionary<(AttentionShape Shape, ElementType Type, bool InKeys, int Rows, bool HasScoreRules, bool IsPages), AttendKernel> _chosen = [];
    private readonly Dictionary<string, AttendKernel> _instances = new(StringComparer.Ordinal);
    private readonly Dictionary<ElementType, PreciseKernel> _precise = [];
    private nint _scratch;
    private long _scratchBytes;

    /// <summary>How many page states of a call may lie in scratch at once.</summary>
    internal int MostStates(PartialAttention like) => (int)Math.Max(1, mostScratchBytes / Math.Max(1, like.Region.Bytes));

    /// <summary>Attention over all pages, split over the device and merged into one state.</summary>
    /// <remarks>
    /// Of a plan that grows the splits are those of all pages that there is room for, and share out the present ones on the device:
    /// the launch is the same, and so are the bits, whether it is done directly or again by a graph. Splits that get none are identities.
    /// </remarks>
    internal void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into)
    {
        bool isGrowing = shard.Plan.RowLengths is not null;
        int pages = shard.Plan.RoomPages;
        if (into.Rows == 0)
        {
            return;
        }

        if (pages == 0)
        {
            states.Clear(into);
            return;
        }

        AttendKernel kernel = KernelFor(problem, queries, shard, false);
        int tiles = TilesOf(problem, queries, kernel);
        int blocks = tiles * problem.Shape.KvHeads * problem.Shape.Batch;
        int wanted = Math.Max((BlocksPerMultiprocessor * context.Multiprocessors) / blocks, (pages + ChapterPages - 1) / ChapterPages);
        int splits = Math.Clamp(wanted, 1, Math.Min(pages, MostStates(into)));
        int pagesPerSplit = (pages + splits - 1) / splits;
        if (isGrowing)
        {
            states.Load(); // a second page brings merges: their kernel is not to be compiled in the midst of the steps
            pagesPerSplit = 0;
        }
        else
        {
            splits = (pages + pagesPerSplit - 1) / pagesPerSplit;
        }

        if (splits == 1)
        {
            Launch(kernel, problem, queries, shard, 0, pagesPerSplit, 1, into.Region.Address);
            return;
        }

        nint parts = Scratch(splits * into.Region.Bytes);
        long stride = into.Region.Count;
        Launch(kernel, problem, queries, shard, 0, pagesPerSplit, splits, parts);
        copies.Copy(into.Region with { Address = parts }, into.Region);
        states.Merge(into.Region.Address, parts + (nint)into.Region.Bytes, stride, splits - 1, into.Rows, into.ValueDim);
    }

    /// <summary>The states of single pages, one after the other in scratch, which the next call takes again.</summary>
    /// <returns>First float of the first state.</returns>
    internal nint AttendPages(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, int first, int count, PartialAttention like)
    {
        nint parts = Scratch(count * like.Region.Bytes);
        Launch(KernelFor(problem, queries, shard, true), problem, queries, shard, first, 1, count, parts, isByRow: true);
        return parts;
    }

    public void Dispose()
    {
        if (_scratch != 0)
        {
            pool.Give(_scratch);
            _scratch = 0;
        }
    }

    private static int TilesOf(AttentionProblem problem, QueryBlock queries, AttendKernel kernel) =>
        ((problem.Shape.GroupSize * queries.Count) + kernel.RowsPerTile - 1) / kernel.RowsPerTile;

    private AttendKernel KernelFor(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, bool isPages)
    {
        ShardPlan plan = shard.Plan;
        int rows = problem.Shape.GroupSize * queries.Count;
        bool hasScoreRules = problem.Options.Softcap > 0 || problem.Mask.HasKeyRules || problem.Mask.HasBias;
        (AttentionShape, ElementType, bool, int, bool, bool) call = (problem.Shape, plan.Type, plan.ValuesInKeys, rows, hasScoreRules, isPages);
        if (!_chosen.TryGetValue(call, out AttendKernel? kernel))
        {
            int shared = context.SharedMemoryPerBlock;
            kernel = isPages
                ? AttendKernel.ForPages(problem.Shape, plan.Type, plan.ValuesInKeys, rows, shared)
                : AttendKernel.For(problem.Shape, plan.Type, plan.ValuesInKeys, rows, hasScoreRules, shared);

            // One object for each instance, so that its module is loaded once.
            AttendKernel? same = _instances.GetValueOrDefault(kernel.Name);
            kernel = same is null ? kernel : kernel with { Program = same.Program };
            _instances[kernel.Name] = kernel;
            _chosen.Add(call, kernel);
        }

        return kernel;
    }

    private void Launch(
        AttendKernel kernel, AttentionProblem problem, QueryBlock queries, KeyValueShard shard, int firstPage, int pagesPerSplit, int splits, nint into,
        bool isByRow = false)
    {
        AttentionShape shape = problem.Shape;
        nint function = kernels.Get(kernel.Program, 0, kernel.SharedBytes);
        AttendArguments arguments = ArgumentsOf(problem, queries, shard);
        arguments.States = into;
        arguments.StateStride = PartialAttention.FloatsFor(queries.RowsFor(shape), shape.ValueDim);
        arguments.Splits = splits;
        arguments.FirstPage = firstPage;
        arguments.PagesPerSplit = pagesPerSplit;
        (int X, int Y, int Z) grid = (splits * TilesOf(problem, queries, kernel), shape.KvHeads, shape.Batch);
        kernels.Launch(function, grid, kernel.Threads, kernel.SharedBytes, arguments, kernel.Name);
        LaunchPrecise(problem, queries, shard, arguments, isByRow);
    }

    private void LaunchPrecise(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, in AttendArguments attend, bool isByRow)
    {
        AttentionShape shape = problem.Shape;
        ElementType type = shard.Plan.Type;
        if (!_precise.TryGetValue(type, out PreciseKernel? kernel))
        {
            kernel = PreciseKernel.For(type);
            _precise.Add(type, kernel);
        }

        int shared = PreciseKernel.SharedBytesFor(shape.HeadDim);
        nint function = kernels.Get(kernel.Program, 0, shared);
        int tiles = ((shape.GroupSize * queries.Count) + PreciseKernel.RowsPerTile - 1) / PreciseKernel.RowsPerTile;
        var arguments = new PreciseArguments
        {
            Attend = attend,
            Limits = tables.LimitsOf(shard),
            Slots = tables.PagesOf(shard.Plan).Slots,
            Scale = problem.Scale,
            ScoreLimit = StorageType.Of(type).ScoreLimit,
            ValueLimit = LargestFastValue,
            ByRow = isByRow ? 1 : 0,
        };
        kernels.Launch(function, (attend.Splits * tiles, shape.KvHeads, shape.Batch), PreciseKernel.Threads, shared, arguments, kernel.Name);
    }

    private AttendArguments ArgumentsOf(AttentionProblem problem, QueryBlock queries, KeyValueShard shard)
    {
        AttentionShape shape = problem.Shape;
        AttentionOptions options = problem.Options;
        (nint entries, nint ranges, _) = tables.PagesOf(shard.Plan);
        float scale = (float)problem.Scale;
        int chunk = Math.Max(0, options.LocalChunk);
        return new AttendArguments
        {
            Queries = queries.Values.Address,
            Contents = shard.Contents.Address,
            Pages = entries,
            PageRanges = ranges,
            QueryIndices = tables.Of(queries.Indices),
            KeyLengths = tables.LengthsOf(options.KeyLengths, shard.Plan),
            QueryLengths = tables.Of(problem.Mask.QueryLengths),
            KeyStarts = tables.Of(options.KeyStarts),
            Places = tables.Of(problem.Mask.PackedPlaces),
            QueryDepths = tables.Of(options.QueryDepths),
            AlibiSlopes = tables.Of(options.AlibiSlopes),
            DfsStart = tables.Of(options.DfsStart),
            DfsEnd = tables.Of(options.DfsEnd),
            DfsPeaks = tables.Of(problem.Mask.DfsPeaks),
            TailMask = tables.Of(options.TailMask),
            TailBias = tables.Of(options.TailBias),
            Scales = tables.Of(shard.Plan.Scales?.OfStorage(shard.Plan.ValuesInKeys)),
            KvHeads = shape.KvHeads,
            Group = shape.GroupSize,
            QueryCount = queries.Count,
            QueryLength = shape.QueryLength,
            KeyLength = shape.KeyLength,
            HeadDim = shape.HeadDim,
            ValueDim = shape.ValueDim,
            ValueStride = shard.Plan.ValueStride,
            Causal = options.IsCausal ? 1 : 0,
            WindowLeft = options.WindowLeft,
            WindowRight = options.WindowRight,
            AlibiPerBatch = options.AlibiSlopes is { } slopes && slopes.Length != shape.QueryHeads ? 1 : 0,
            TailMaskLength = options.TailMaskLength,
            TailBiasLength = options.TailBiasLength,
            TailBiasPerBatch = options.TailBias is { } bias && bias.Length != shape.QueryLength * options.TailBiasLength ? 1 : 0,
            Scale = scale,
            ScaleRest = (float)(problem.Scale - scale),
            Softcap = options.Softcap,
            LocalChunk = chunk,
            ChunkOrigin = chunk == 0 ? 0 : unchecked((int)((shape.QueryLength + chunk - 1L) / chunk * chunk)), // read as unsigned
            DepthsPerBatch = options.QueryDepths is { } depths && depths.Length != shape.QueryLength ? 1 : 0,
        };
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
