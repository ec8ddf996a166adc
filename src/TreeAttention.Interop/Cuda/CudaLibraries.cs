using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;

namespace TreeAttention.Interop.Cuda;

/// <summary>The one CUDA driver and the one NVRTC of this process: found, loaded, bound to the declarations.</summary>
internal static class CudaLibraries
{
    private const string DriverName = "cuda";
    private const string CompilerName = "nvrtc";

    /// <summary>Loads the first of the candidates that can be loaded as the driver; a process has one, so a second call returns the first.</summary>
    /// <returns>The candidate.</returns>
    /// <exception cref="DllNotFoundException">None can be loaded.</exception>
    internal static string LoadDriver(IReadOnlyList<string> candidates) => NativeLibraries.LoadFirst(DriverName, candidates);

    /// <summary>Loads the first of the candidates that can be loaded as NVRTC; its built-ins come from the same folder.</summary>
    /// <returns>The candidate.</returns>
    /// <exception cref="DllNotFoundException">None can be loaded.</exception>
    internal static string LoadCompiler(IReadOnlyList<string> candidates) =>
        NativeLibraries.LoadFirst(CompilerName, candidates, LoadBuiltins);

    // NVRTC opens its built-ins by soname: those beside it are found only when they are loaded already.
    private static void LoadBuiltins(string candidate)
    {
        string? folder = Path.GetDirectoryName(candidate);
        if (!string.IsNullOrEmpty(folder) && Directory.Exists(folder))
        {
            foreach (string file in Directory.GetFiles(folder, "libnvrtc-builtins.so.*").Order(StringComparer.Ordinal))
            {
                _ = NativeLibrary.TryLoad(file, out _);
            }
        }
    }
}
