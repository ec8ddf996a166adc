using System.Collections.Concurrent;
using System.Reflection;
using System.Runtime.InteropServices;

namespace TreeAttention.Interop;

/// <summary>The libraries that are chosen at run time: from the name in the declarations to the handle that was loaded.</summary>
/// <remarks>An assembly has room for one resolver, so all bindings share this one.</remarks>
internal static class NativeLibraries
{
    private static readonly ConcurrentDictionary<string, nint> _handles = new();

    static NativeLibraries() => NativeLibrary.SetDllImportResolver(Assembly.GetExecutingAssembly(), Resolve);

    /// <summary>Binds declarations of <paramref name="name"/> to a loaded library. The first binding of a name stays.</summary>
    internal static void Bind(string name, nint handle) => _handles.TryAdd(name, handle);

    // Zero leaves the search to the run time: libc is found by its own name.
    private static nint Resolve(string name, Assembly assembly, DllImportSearchPath? path) =>
        _handles.TryGetValue(name, out nint handle) ? handle : 0;
}
