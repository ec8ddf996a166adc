using System;
using System.Collections.Generic;
using System.ComponentModel;
using System.Diagnostics;
using System.IO;
using System.Linq;

namespace TreeAttention.Runtime;

/// <summary>Where the system's loader would find shared libraries, without loading them: two MPIs in one process do not mix.</summary>
internal sealed class LibrarySearch
{
    private static readonly string[] _usualFolders = ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/local/lib", "/usr/lib", "/usr/lib64"];
    private readonly string[] _folders;
    private readonly Dictionary<string, string> _cache;

    /// <summary>Looks at the loader's path and cache once.</summary>
    public LibrarySearch(string? libraryPath)
    {
        _folders = [.. (libraryPath ?? "").Split(':', StringSplitOptions.RemoveEmptyEntries), .. _usualFolders];
        _cache = LoaderCache();
    }

    /// <summary>Path of the library with this soname; null when the loader would not find it.</summary>
    public string? Find(string soname) =>
        _folders.Select(folder => Path.Combine(folder, soname)).FirstOrDefault(File.Exists) ?? _cache.GetValueOrDefault(soname);

    // Lines are "	libmpi.so.40 (libc6,x86-64) => /usr/lib/...".
    private static Dictionary<string, string> LoaderCache()
    {
        var cache = new Dictionary<string, string>(StringComparer.Ordinal);
        try
        {
            using Process process = Process.Start(new ProcessStartInfo("/sbin/ldconfig", "-p") { RedirectStandardOutput = true, RedirectStandardError = true })!;
            while (process.StandardOutput.ReadLine() is { } line)
            {
                int arrow = line.IndexOf(" => ", StringComparison.Ordinal);
                int space = line.IndexOf(' ', StringComparison.Ordinal);
                if (arrow > 0 && space > 0)
                {
                    cache.TryAdd(line[..space].Trim(), line[(arrow + 4)..]);
                }
            }

            process.WaitForExit();
        }
        catch (Win32Exception)
        {
            // No ldconfig here (musl, a minimal container): the usual folders are all there is to see.
        }

        return cache;
    }
}
