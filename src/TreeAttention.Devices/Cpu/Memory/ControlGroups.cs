using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;

namespace TreeAttention.Devices.Cpu.Memory;

/// <summary>What the control groups of this process leave of their memory: above it the kernel kills, without a word to the process.</summary>
/// <remarks>
/// The groups are those that the process is in by /proc/self/cgroup, version 1 and 2, found under the mounts of /proc/self/mountinfo, and all
/// their ancestors: the tightest counts. Pages of files count as free, since the kernel takes them back when memory is short: a process that
/// has read its inputs must not look full. Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
/// </remarks>
internal static class ControlGroups
{
    private static readonly Names _first = new("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file");
    private static readonly Names _second = new("memory.max", "memory.current", "inactive_file", "active_file");

    /// <summary>Bytes that the tightest group leaves; <see cref="long.MaxValue"/> where none sets a limit.</summary>
    /// <param name="read">Gives the text of a file; null where there is none.</param>
    internal static long Available(Func<string, string?> read)
    {
        long available = long.MaxValue;
        foreach ((string mount, string path, Names names) in GroupsOf(read))
        {
            // From the group up to the mount: a limit of any of them holds.
            for (string group = path; ; group = group[..group.LastIndexOf('/')])
            {
                available = Math.Min(available, LeftIn(mount + group, names, read));
                if (group.Length == 0)
                {
                    break;
                }
            }
        }

        return available;
    }

    private static long LeftIn(string folder, Names names, Func<string, string?> read)
    {
        if (Number(read($"{folder}/{names.Limit}")) is not { } limit || Number(read($"{folder}/{names.Usage}")) is not { } used)
        {
            return long.MaxValue;
        }

        string[] statistics = (read($"{folder}/memory.stat") ?? "").Split('\n');
        long files = statistics.Select(line => line.Split(' '))
            .Where(pair => pair.Length == 2 && (pair[0] == names.InactiveFiles || pair[0] == names.ActiveFiles))
            .Sum(pair => Number(pair[1]) ?? 0);
        return Math.Max(0, limit - Math.Max(0, used - files));
    }

    // Where the process's own groups are mounted, and their paths below the mounts, "" for the mount itself.
    private static IEnumerable<(string Mount, string Path, Names Names)> GroupsOf(Func<string, string?> read)
    {
        string[][] mounts = [.. Lines(read("/proc/self/mountinfo")).Select(line => line.Split(' '))];
        foreach (string[] membership in Lines(read("/proc/self/cgroup")).Select(line => line.Split(':', 3)).Where(parts => parts.Length == 3))
        {
            bool isSecond = membership[1].Length == 0;
            if (!isSecond && !membership[1].Split(',').Contains("memory"))
            {
                continue;
            }

            foreach (string[] mount in mounts.Where(fields => IsOf(fields, isSecond)))
            {
                (string root, string point) = (mount[3].TrimEnd('/'), mount[4]);

                // A mount of a part of the tree, as inside a container, shows the groups below its root; of others only itself.
                string path = membership[2].StartsWith(root + "/", StringComparison.Ordinal) ? membership[2][root.Length..].TrimEnd('/') : "";
                yield return (point, path.Contains("..", StringComparison.Ordinal) ? "" : path, isSecond ? _second : _first);
            }
        }
    }

    // ID parent major:minor root mount-point options [optional fields] - type source super-options
    private static bool IsOf(string[] fields, bool isSecond)
    {
        int dash = Array.IndexOf(fields, "-");
        return dash >= 6 && fields.Length > dash + 3
            && (isSecond ? fields[dash + 1] == "cgroup2" : fields[dash + 1] == "cgroup" && fields[dash + 3].Split(',').Contains("memory"));
    }

    private static string[] Lines(string? text) => (text ?? "").Split('\n', StringSplitOptions.RemoveEmptyEntries);

    // "max" is no number, and no limit.
    private static long? Number(string? text) =>
        long.TryParse(text?.Trim(), NumberStyles.None, CultureInfo.InvariantCulture, out long value) ? value : null;

    /// <summary>How a version names what a group says.</summary>
    private sealed record Names(string Limit, string Usage, string InactiveFiles, string ActiveFiles);
}
