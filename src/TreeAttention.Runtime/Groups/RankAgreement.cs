using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Text.Json;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>What ranks agree on: work that can fail on single ranks, after which all go on or all leave; settings; numbers of each.</summary>
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
            fault = new FaultException(
                FaultCode.OutOfMemory,
                "This does not fit in the memory of the host. Use more ranks on more nodes, a smaller --dtype, a shorter context, or fewer layers or rows.",
                error);
        }
        finally
        {
            control.Leave();
        }

        Settle(control, fault);
        return result;
    }

    /// <summary>Refuses to work when the ranks were started with different settings.</summary>
    /// <exception cref="FaultException">Ranks disagree (78).</exception>
    internal static void Agree(IControlPlane control, IReadOnlyList<KeyValuePair<string, string>> settings)
    {
        byte[] mine = JsonSerializer.SerializeToUtf8Bytes(
            settings.SelectMany(setting => new[] { setting.Key, setting.Value }).ToArray(), RuntimeJson.Default.StringArray);
        string[][] all = [.. control.AllGather(mine)
            .Select(bytes => JsonSerializer.Deserialize(bytes, RuntimeJson.Default.StringArray)!)];
        var names = all.SelectMany(values => values.Where((_, i) => i % 2 == 0)).Distinct().ToList();
        string[] differing = [.. names
            .Select(name => (Name: name, Values: all.Select(values => ValueOf(values, name)).ToArray()))
            .Where(setting => setting.Values.Distinct().Count() > 1)
            .Select(setting => "  " + setting.Name + ": "
                + string.Join(", ", setting.Values.Select((value, rank) => $"rank {rank}: {value}")))];
        if (differing.Length > 0)
        {
            throw new FaultException(
                FaultCode.RanksDisagree,
                $"The {control.Size} ranks disagree on {differing.Length} setting(s); start every rank with the same arguments and files:\n"
                + string.Join('\n', differing))
            { IsAgreed = true };
        }
    }

    /// <summary>Gathers the same number of integers of every rank: [rank][index].</summary>
    internal static long[][] Gather(IControlPlane control, ReadOnlySpan<long> mine)
    {
        byte[] bytes = new byte[mine.Length * sizeof(long)];
        for (int i = 0; i < mine.Length; i++)
        {
            BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(i * sizeof(long)), mine[i]);
        }

        return [.. control.AllGather(bytes).Select(Integers)];
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

    private static long[] Integers(byte[] bytes)
    {
        long[] values = new long[bytes.Length / sizeof(long)];
        for (int i = 0; i < values.Length; i++)
        {
            values[i] = BinaryPrimitives.ReadInt64LittleEndian(bytes.AsSpan(i * sizeof(long)));
        }

        return values;
    }

    private static string ValueOf(string[] pairs, string name)
    {
        int index = Array.IndexOf(pairs, name);
        return index < 0 ? "(none)" : pairs[index + 1];
    }
}
