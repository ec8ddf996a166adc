using System;
using System.Collections.Generic;
using System.Globalization;
using System.Text.Json;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Work that can fail on single ranks, after which all ranks go on or all leave.</summary>
internal static class RankAgreement
{
    /// <summary>Does the work on every rank; when it fails anywhere, every rank throws the same fault.</summary>
    /// <exception cref="FaultException">The fault of the lowest rank that failed.</exception>
    internal static T Together<T>(IControlPlane control, Func<T> work)
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

    private static void Settle(IControlPlane control, FaultException? fault)
    {
        byte[] mine = fault is null
            ? []
            : JsonSerializer.SerializeToUtf8Bytes([((int)fault.Code).ToString(CultureInfo.InvariantCulture), fault.Message], RuntimeJson.Default.StringArray);
        IReadOnlyList<byte[]> all = control.AllGather(mine);
        for (int rank = 0; rank < all.Count; rank++)
        {
            if (all[rank].Length == 0)
            {
                continue;
            }

            string[] found = JsonSerializer.Deserialize(all[rank], RuntimeJson.Default.StringArray)!;
            throw new FaultException((FaultCode)int.Parse(found[0], CultureInfo.InvariantCulture), found[1], fault)
            {
                Rank = rank,
                IsAgreed = true,
            };
        }
    }
}
