using System.Collections.Generic;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cuda.Attention;

/// <summary>The kernels at the edge of a step: a final state becomes the caller's result, numbers of the caller's type become fp32 or come of it.</summary>
internal sealed class EdgeKernels(KernelFunctions kernels, DeviceTables tables)
{
    private const string Source = "edge.cu";
    private const int FinishThreads = 128;
    private const int FinishRows = 4;
    private const int ConvertThreads = 256;

    private readonly KernelProgram _finish = new(Source, ["finish_states"], false);
    private readonly Dictionary<(ElementType From, ElementType To), KernelProgram> _convert = [];

    /// <summary><see cref="IDevice.Finish"/></summary>
    internal void Finish(AttentionProblem problem, int[] indices, PartialAttention state, Region output, Region lse)
    {
        if (state.Rows == 0)
        {
            return;
        }

        nint function = kernels.Get(_finish, 0, 0);
        var arguments = new FinishArguments
        {
            State = state.Region.Address,
            Output = output.Address,
            Lse = lse.Address,
            Sinks = tables.Of(problem.Options.Sinks),
            QueryIndices = tables.Of(indices),
            QueryLengths = tables.Of(problem.Mask.QueryLengths),
            Rows = state.Rows,
            QueryHeads = problem.Shape.QueryHeads,
            Count = indices.Length,
            ValueDim = state.ValueDim,
            IsBaseTwo = problem.Options.LseBase == LogarithmBase.Two ? 1 : 0,
        };
        kernels.Launch(function, ((state.Rows + FinishRows - 1) / FinishRows, 1, 1), FinishThreads, 0, arguments, _finish.Expressions[0]);
    }

    /// <summary><see cref="IDevice.Convert"/></summary>
    internal void Convert(Region from, Region to)
    {
        if (from.Count == 0)
        {
            return;
        }

        if (!_convert.TryGetValue((from.Type, to.Type), out KernelProgram? program))
        {
            string expression = $"convert<{AttendKernel.ElementName(from.Type)}, {AttendKernel.ElementName(to.Type)}>";
            program = new KernelProgram(Source, [expression], false);
            _convert.Add((from.Type, to.Type), program);
        }

        nint function = kernels.Get(program, 0, 0);
        int blocks = checked((int)((from.Count + ConvertThreads - 1) / ConvertThreads));
        var arguments = new ConvertArguments { From = from.Address, To = to.Address, Count = from.Count };
        kernels.Launch(function, (blocks, 1, 1), ConvertThreads, 0, arguments, program.Expressions[0]);
    }
}
