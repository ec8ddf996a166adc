using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Threading;
using TreeAttention.Distributed.Faults;
using TreeAttention.Interop.Mpi;

namespace TreeAttention.Communication.Mpi;

/// <summary>The merge of states as an operator of MPI: one element is one whole state, so that no library cuts through a row.</summary>
/// <remarks>
/// A state is [output | max | sum], so its rows cannot be told from its length: the callback finds the shape under the
/// handle of the datatype. The operator is commutative to the bit, so the library may fold in any order, and ranks
/// that fold the same pairs get the same bits. A world has one operator and one datatype per shape, made once.
/// </remarks>
internal sealed unsafe class MpiStateReduction
{
    private static readonly ConcurrentDictionary<nint, (int Rows, int ValueDim)> _shapes = new();
    private static MpiConstants? _mpi;
    private static int _unknownTypes;

    private readonly Dictionary<(int Rows, int ValueDim), nint> _types = [];
    private nint _operation;

    /// <summary>Folds the states of all ranks of the channel, in place. Collective.</summary>
    internal void AllReduce(MpiChannel channel, PartialAttention state)
    {
        long floats = PartialAttention.FloatsFor(state.Rows, state.ValueDim);
        if (floats == 0)
        {
            return;
        }

        nint type = TypeOf(channel, state.Rows, state.ValueDim, floats);
        channel.AllReduce(state.Region.Address, 1, type, _operation, floats);
        if (Volatile.Read(ref _unknownTypes) != 0)
        {
            throw new FaultException(
                FaultCode.CommunicationFault,
                $"Rank {channel.Rank} of {channel.Size}: {channel.Library.Product} called the merge of states with a datatype that was never "
                + $"given to it. Use another {Setting.Reduction}.")
            { Rank = channel.Rank };
        }
    }

    /// <summary>Frees the operator and the datatypes: before MPI_Finalize, else MPICH reports leaks.</summary>
    internal void Free(MpiChannel channel)
    {
        foreach (nint type in _types.Values)
        {
            nint handle = type;
            _shapes.TryRemove(type, out _);
            channel.Check(MpiNative.TypeFree(&handle), "freeing a datatype");
        }

        _types.Clear();
        if (_operation != 0)
        {
            nint handle = _operation;
            _operation = 0;
            channel.Check(MpiNative.OpFree(&handle), "freeing an operator");
        }
    }

    private nint TypeOf(MpiChannel channel, int rows, int valueDim, long floats)
    {
        if (_types.TryGetValue((rows, valueDim), out nint type))
        {
            return type;
        }

        if (floats > int.MaxValue / sizeof(float))
        {
            throw new FaultException(
                FaultCode.CommunicationFault,
                $"A state of {rows:N0} rows × {valueDim} is {floats:N0} floats: as one element of an MPI operator it may have at most "
                + $"{int.MaxValue / sizeof(float):N0}. Use {Setting.ReductionButterfly}.")
            { Rank = channel.Rank };
        }

        _mpi = channel.Library.Constants;
        if (_operation == 0)
        {
            nint operation = 0;
            channel.Check(MpiNative.OpCreate(&Fold, commute: 1, &operation), "creating the merge operator");
            _operation = operation;
        }

        channel.Check(MpiNative.TypeContiguous((int)floats, _mpi.Float, &type), "creating a datatype");
        channel.Check(MpiNative.TypeCommit(&type), "creating a datatype");
        _shapes[type] = (rows, valueDim);
        _types[(rows, valueDim)] = type;
        return type;
    }

    // No exception may pass through the library's frames: an unknown datatype is only marked, and told by the caller.
    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static void Fold(void* incoming, void* result, int* count, void* type)
    {
        if (_mpi == null || !_shapes.TryGetValue(_mpi.HandleAt(type), out (int Rows, int ValueDim) shape))
        {
            Volatile.Write(ref _unknownTypes, 1);
            return;
        }

        int outputs = shape.Rows * shape.ValueDim;
        int floats = outputs + (2 * shape.Rows);
        for (int i = 0; i < *count; i++)
        {
            var into = new Span<float>((float*)result + ((long)i * floats), floats);
            var from = new ReadOnlySpan<float>((float*)incoming + ((long)i * floats), floats);
            PartialMerge.Fold(
                into[..outputs], into.Slice(outputs, shape.Rows), into[(outputs + shape.Rows)..],
                from[..outputs], from.Slice(outputs, shape.Rows), from[(outputs + shape.Rows)..], shape.ValueDim);
        }
    }
}
