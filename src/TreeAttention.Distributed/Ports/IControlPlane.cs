using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Text;

namespace TreeAttention.Distributed.Ports;

/// <summary>The small second plane between the ranks, the same for every transport: agreement before work, heartbeats, abort.</summary>
/// <remarks>It never carries tensors, works while a collective hangs, and counts its bytes as control bytes.</remarks>
internal interface IControlPlane : IDisposable
{
    /// <summary>The operation of a rank that waits for work: it has no deadline, since there may be none for hours.</summary>
    const string WorkOperation = "waiting for work";

    /// <summary>This rank.</summary>
    int Rank { get; }

    /// <summary>Number of ranks.</summary>
    int Size { get; }

    /// <summary>Gathers a few bytes of every rank on every rank, in rank order.</summary>
    /// <exception cref="FaultException">A rank is gone (200) or did not answer in time (201); the message names it.</exception>
    IReadOnlyList<byte[]> AllGather(ReadOnlyMemory<byte> mine);

    /// <summary>Gives every rank the bytes of rank 0. The others wait for it without a deadline; rank 0 waits for them with one.</summary>
    /// <exception cref="FaultException">A rank is gone (200), or rank 0 waits for one that does not come (201).</exception>
    byte[] AwaitWork(ReadOnlyMemory<byte> mine);

    /// <summary>Tells that this rank begins an operation; heartbeats carry the latest. Allocates nothing.</summary>
    /// <param name="operation">A constant name: <c>ring hop</c>, <c>all-reduce</c>.</param>
    void Enter(string operation);

    /// <summary>Tells that this rank finished the operation.</summary>
    void Leave();

    /// <summary>What is known here of another rank.</summary>
    RankHealth HealthOf(int rank) => new(rank, null, null);

    /// <summary>Leaves in order: returns when every rank leaves, or as soon as another one waits for this rank in something else.</summary>
    /// <returns>Every rank leaves. If not the group has ended, and its transports must not be waited for.</returns>
    bool LeaveTogether() => true;

    /// <summary>Ends the whole group: every rank leaves with this code. Returns only for in-process ranks.</summary>
    void Abort(FaultCode code, string reason);
}

/// <summary>Work that can fail on single ranks, after which all ranks go on or all leave.</summary>
internal static class RankAgreement
{
    /// <summary>Does the work on every rank; when it fails anywhere, every rank throws the same fault.</summary>
    /// <param name="control">The control plane of the ranks.</param>
    /// <param name="work">The work, which talks to no other rank: each of them does its own to the end.</param>
    /// <exception cref="FaultException">The fault of the lowest rank that failed.</exception>
    public static T Together<T>(IControlPlane control, Func<T> work)
    {
        T result = default!;
        FaultException? fault = null;
        control.Enter("compute");
        try
        {
            result = work();
        }
        catch (ShapeMismatchException error)
        {
            fault = new FaultException(FaultCode.BadInput, error.Message, error);
        }
        catch (FaultException error) when (error.Code is not (FaultCode.PeerLost or FaultCode.NoProgress or FaultCode.CommunicationFault))
        {
            fault = error;
        }
        catch (OutOfMemoryException error)
        {
            fault = FaultException.OfHostMemory(error);
        }
        finally
        {
            control.Leave();
        }

        Settle(control, fault);
        return result;
    }

    /// <summary>Tells the ranks whether this one has a fault; when any has, every rank throws the same.</summary>
    /// <param name="control">The control plane of the ranks; every rank calls it.</param>
    /// <param name="fault">This rank's fault, or null.</param>
    /// <exception cref="FaultException">The fault of the lowest rank that has one.</exception>
    public static void Settle(IControlPlane control, FaultException? fault)
    {
        IReadOnlyList<byte[]> all = control.AllGather(fault is null ? [] : Encode(fault));
        for (int rank = 0; rank < all.Count; rank++)
        {
            if (all[rank].Length > 0)
            {
                throw new FaultException(
                    (FaultCode)BinaryPrimitives.ReadInt32LittleEndian(all[rank]), Encoding.UTF8.GetString(all[rank].AsSpan(sizeof(int))), fault)
                {
                    Rank = rank,
                    IsAgreed = true,
                };
            }
        }
    }

    private static byte[] Encode(FaultException fault)
    {
        byte[] bytes = new byte[sizeof(int) + Encoding.UTF8.GetByteCount(fault.Message)];
        BinaryPrimitives.WriteInt32LittleEndian(bytes, (int)fault.Code);
        Encoding.UTF8.GetBytes(fault.Message, bytes.AsSpan(sizeof(int)));
        return bytes;
    }
}
