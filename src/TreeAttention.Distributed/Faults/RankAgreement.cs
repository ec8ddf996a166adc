using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Text;

namespace TreeAttention.Distributed;

/// <summary>Work that can fail on single ranks, after which all ranks go on or all leave.</summary>
public static class RankAgreement
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
