using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Linq;
using System.Text.Json;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>One rank's place in a group of ranks that attend together: its transport, its device, and how all agree.</summary>
public sealed class AttentionGroup
{
    internal AttentionGroup(RankContext context, int threads, string description)
    {
        Context = context;
        Threads = threads;
        Description = description;
    }

    /// <summary>The transport, the device and the control plane of this rank.</summary>
    public RankContext Context { get; }

    /// <summary>Threads that this rank computes with on a CPU.</summary>
    public int Threads { get; }

    /// <summary>Node of each rank: what the transport finds, or what the options put in its place.</summary>
    public IReadOnlyList<int> Nodes => Context.Transport.Nodes;

    /// <summary>What the ranks are: <c>4 in-process ranks</c>, the MPI library.</summary>
    public string Description { get; }

    /// <summary>This rank.</summary>
    public int Rank => Context.Transport.Rank;

    /// <summary>Number of ranks.</summary>
    public int Size => Context.Transport.Size;

    /// <summary>This rank speaks for the group: it alone writes results.</summary>
    public bool IsRoot => Rank == 0;

    /// <summary>Does a part of the work that can fail on single ranks; when it fails anywhere, every rank throws the same fault.</summary>
    /// <remarks>Every rank calls it. Afterwards either all ranks go on or all leave, with one code.</remarks>
    /// <exception cref="FaultException">The fault of the lowest rank that failed.</exception>
    public T Together<T>(Func<T> work) => RankAgreement.Together(Context.Control, work);

    /// <inheritdoc cref="Together{T}(Func{T})"/>
    public void Together(Action work) => Together(() =>
    {
        work();
        return true;
    });

    /// <summary>Refuses to work when the ranks were started with different settings.</summary>
    /// <param name="settings">Names and values; the same names on every rank.</param>
    /// <exception cref="FaultException">Ranks disagree (78): a line for each setting that differs.</exception>
    public void Agree(IReadOnlyList<KeyValuePair<string, string>> settings)
    {
        byte[] mine = JsonSerializer.SerializeToUtf8Bytes(
            settings.SelectMany(setting => new[] { setting.Key, setting.Value }).ToArray(), RuntimeJson.Default.StringArray);
        string[][] all = [.. Context.Control.AllGather(mine)
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
                $"The {Size} ranks disagree on {differing.Length} setting(s); start every rank with the same arguments and files:\n"
                + string.Join('\n', differing))
            { IsAgreed = true };
        }
    }

    /// <summary>Gathers the same number of integers of every rank on every rank: [rank][index].</summary>
    public long[][] Gather(params ReadOnlySpan<long> mine)
    {
        byte[] bytes = new byte[mine.Length * sizeof(long)];
        for (int i = 0; i < mine.Length; i++)
        {
            BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(i * sizeof(long)), mine[i]);
        }

        return [.. Context.Control.AllGather(bytes).Select(Integers)];
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
