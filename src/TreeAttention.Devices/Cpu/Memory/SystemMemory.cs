using System;
using System.Globalization;
using System.IO;
using System.Linq;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>How much memory the machine, or the control group of the process, has left.</summary>
internal static class SystemMemory
{
    // Below this the check costs more than it can save.
    private const long Checked = 64L << 20;

    private const string Group = "/sys/fs/cgroup/";

    /// <summary>Bytes that can still be used without swapping; <see cref="long.MaxValue"/> where the system does not say.</summary>
    internal static long Available()
    {
        long available = long.MaxValue;
        if (File.Exists("/proc/meminfo"))
        {
            string line = File.ReadLines("/proc/meminfo").FirstOrDefault(l => l.StartsWith("MemAvailable:", StringComparison.Ordinal), "");
            string digits = string.Concat(line.Where(char.IsAsciiDigit));
            available = digits.Length == 0 ? available : long.Parse(digits, CultureInfo.InvariantCulture) * 1024;
        }

        if (Number(Group + "memory.max") is { } most && Number(Group + "memory.current") is { } used)
        {
            available = Math.Min(available, Math.Max(0, most - used));
        }

        return available;
    }

    /// <summary>Refuses what the system would promise now and kill the process for later.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    internal static void Require(long bytes)
    {
        if (bytes >= Checked && Available() is long available && bytes > available)
        {
            throw Exhausted(bytes, available);
        }
    }

    /// <summary>The fault for an allocation that does not fit.</summary>
    internal static FaultException Exhausted(long bytes, long available) => new(
        FaultCode.OutOfMemory,
        string.Create(
            CultureInfo.InvariantCulture,
            $"{bytes:N0} bytes of host memory are needed and {available:N0} are available. Use more ranks on more nodes, a smaller --dtype, or a shorter context."));

    private static long? Number(string file) =>
        File.Exists(file) && long.TryParse(File.ReadAllText(file), CultureInfo.InvariantCulture, out long value) ? value : null;
}
