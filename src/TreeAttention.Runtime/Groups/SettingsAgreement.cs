using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Linq;
using System.Text.Json;
using TreeAttention.Distributed.Ports;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Runtime.Groups;

/// <summary>What ranks tell each other before they work: their settings, which must be the same, and numbers.</summary>
internal static class SettingsAgreement
{
    /// <summary>Refuses to work when the ranks were started with different settings.</summary>
    /// <exception cref="FaultException">Ranks disagree (78).</exception>
    internal static void Agree(IControlPlane control, IReadOnlyList<KeyValuePair<string, string>> settings) =>
        Agree(control, settings, "start every rank with the same arguments and files");

    /// <summary>Refuses a call that ranks give different options, or that is another call on some of them.</summary>
    /// <exception cref="FaultException">Ranks disagree (78).</exception>
    internal static void AgreeOnCall(IControlPlane control, string call, IEnumerable<KeyValuePair<string, string>> settings) =>
        Agree(control, [new("call", call), .. settings], "every rank makes the same calls with the same options");

    private static void Agree(IControlPlane control, IReadOnlyList<KeyValuePair<string, string>> settings, string remedy)
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
                $"The {control.Size} ranks disagree on {differing.Length} setting(s); {remedy}:\n"
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
