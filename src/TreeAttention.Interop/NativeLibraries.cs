using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Threading;

namespace TreeAttention.Interop;

/// <summary>The libraries that are chosen at run time: from the name in the declarations to the handle that was loaded.</summary>
/// <remarks>An assembly has room for one resolver, so all bindings share this one.</remarks>
internal static class NativeLibraries
{
    private static readonly ConcurrentDictionary<string, nint> _handles = new();
    private static readonly Lock _gate = new();
    private static readonly Dictionary<string, string> _loaded = new(StringComparer.Ordinal);

    static NativeLibraries() => NativeLibrary.SetDllImportResolver(Assembly.GetExecutingAssembly(), Resolve);

    /// <summary>Loads the first of the candidates that can be loaded and binds declarations of <paramref name="name"/> to it; a process has one, so a second call returns the first.</summary>
    /// <param name="name">The name in the declarations.</param>
    /// <param name="candidates">File names, best first.</param>
    /// <param name="prepare">Called before a candidate is tried.</param>
    /// <returns>The candidate.</returns>
    /// <exception cref="DllNotFoundException">None can be loaded.</exception>
    internal static string LoadFirst(string name, IReadOnlyList<string> candidates, Action<string>? prepare = null)
    {
        lock (_gate)
        {
            if (_loaded.TryGetValue(name, out string? before))
            {
                return before;
            }

            foreach (string candidate in candidates)
            {
                prepare?.Invoke(candidate);
                if (NativeLibrary.TryLoad(candidate, out nint handle))
                {
                    Bind(name, handle);
                    _loaded.Add(name, candidate);
                    return candidate;
                }
            }
        }

        throw new DllNotFoundException($"None of {string.Join(", ", candidates)} can be loaded.");
    }

    /// <summary>Binds declarations of <paramref name="name"/> to a loaded library. The first binding of a name stays.</summary>
    internal static void Bind(string name, nint handle) => _handles.TryAdd(name, handle);

    // Zero leaves the search to the run time: libc is found by its own name.
    private static nint Resolve(string name, Assembly assembly, DllImportSearchPath? path) =>
        _handles.TryGetValue(name, out nint handle) ? handle : 0;
}
