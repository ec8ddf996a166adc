using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Devices.Cuda.Kernels;

/// <summary>The kernels over states: merge, fold, weigh, unweigh, clear. A warp per row.</summary>
internal sealed class StateKernels(KernelFunctions kernels)
{
    private const int Threads = 128;
    private const int RowsPerBlock = 4;

    // Products and sums stay apart: merges have the same bits in either order.
    private readonly KernelProgram _program = new("states.cu", ["merge_states", "fold_states", "weigh", "unweigh", "clear_state"], false);

    /// <summary>Compiles the kernels, or takes them from the cache, unless that was done.</summary>
    internal void Load() => _ = kernels.Get(_program, 0, 0);

    /// <summary>Folds <paramref name="count"/> states, one after the other, into a state.</summary>
    /// <param name="into">First float of the state.</param>
    /// <param name="from">First float of the first state that is folded in.</param>
    /// <param name="stride">Floats from state to state.</param>
    /// <param name="count">States that are folded in.</param>
    /// <param name="rows">Rows of each state.</param>
    /// <param name="valueDim">Elements of an output row.</param>
    internal void Merge(nint into, nint from, long stride, int count, int rows, int valueDim) => Launch(0, rows, new MergeArguments
    {
        Into = into,
        From = from,
        FromStride = stride,
        Rows = rows,
        ValueDim = valueDim,
        Count = count,
    });

    /// <summary>Folds among states at one stride, by steps that lie in device memory.</summary>
    internal void Fold(nint states, nint steps, long stride, int count, int rows, int valueDim) => Launch(1, rows, new FoldArguments
    {
        States = states,
        Steps = steps,
        StateStride = stride,
        Rows = rows,
        ValueDim = valueDim,
        Count = count,
    });

    /// <summary><see cref="IDevice.Weigh"/></summary>
    internal void Weigh(PartialAttention partial, Region top, float unit, Region numerator, Region denominator) =>
        Launch(2, partial.Rows, new WeighArguments
        {
            State = partial.Region.Address,
            Top = top.Address,
            Numerator = numerator.Address,
            Denominator = denominator.Address,
            Rows = partial.Rows,
            ValueDim = partial.ValueDim,
            Unit = unit,
        });

    /// <summary><see cref="IDevice.Unweigh"/></summary>
    internal void Unweigh(Region top, float unit, Region numerator, Region denominator, PartialAttention into) =>
        Launch(3, into.Rows, new UnweighArguments
        {
            Top = top.Address,
            Numerator = numerator.Address,
            Denominator = denominator.Address,
            State = into.Region.Address,
            Rows = into.Rows,
            ValueDim = into.ValueDim,
            Unit = unit,
        });

    /// <summary>Makes a state the identity.</summary>
    internal void Clear(PartialAttention partial) => Launch(4, partial.Rows, new ClearArguments
    {
        State = partial.Region.Address,
        Rows = partial.Rows,
        ValueDim = partial.ValueDim,
    });

    private void Launch<T>(int kernel, int rows, in T arguments)
        where T : unmanaged
    {
        if (rows > 0)
        {
            nint function = kernels.Get(_program, kernel, 0);
            kernels.Launch(function, ((rows + RowsPerBlock - 1) / RowsPerBlock, 1, 1), Threads, 0, arguments, _program.Expressions[kernel]);
        }
    }
}
