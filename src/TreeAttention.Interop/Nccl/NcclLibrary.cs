using System;
using System.Collections.Generic;
using System.Globalization;
using System.Runtime.InteropServices;

namespace TreeAttention.Interop.Nccl;

/// <summary>The one NCCL of this process: found, loaded, bound to the declarations.</summary>
internal static unsafe class NcclLibrary
{
    /// <summary>The oldest version whose calls are made: 2.18 has splits.</summary>
    internal const int OldestVersion = 21801;

    private const string Name = "nccl";
    private const uint ConfigMagic = 0xcafebeef;
    private const int Undefined = int.MinValue;

    /// <summary>Loads the first of the candidates that can be loaded; a process has one NCCL, so a second call returns the first.</summary>
    /// <returns>The candidate.</returns>
    /// <exception cref="DllNotFoundException">None can be loaded.</exception>
    internal static string Load(IReadOnlyList<string> candidates) => NativeLibraries.LoadFirst(Name, candidates);

    /// <summary>The version as NCCL numbers it: 22203 is 2.22.3.</summary>
    internal static int ReadVersion()
    {
        int version;
        return NcclNative.ncclGetVersion(&version) == ncclResult_t.ncclSuccess ? version : 0;
    }

    /// <summary>A version as people write it.</summary>
    internal static string Describe(int version) =>
        string.Create(CultureInfo.InvariantCulture, $"{version / 10000}.{version / 100 % 100}.{version % 100}");

    /// <summary>The settings of a communicator whose calls do not block: only such a one can be aborted safely.</summary>
    internal static ncclConfig_t NonblockingConfig() => new()
    {
        size = (nuint)sizeof(ncclConfig_t),
        magic = ConfigMagic,
        version = OldestVersion,
        blocking = 0,
        cgaClusterSize = Undefined,
        minCTAs = Undefined,
        maxCTAs = Undefined,
        netName = null,
        splitShare = Undefined,
    };

    /// <summary>What NCCL says of an error, with its own last words where there are some.</summary>
    /// <param name="result">The error.</param>
    /// <param name="communicator">Where it came up; 0 for none.</param>
    internal static string Describe(ncclResult_t result, nint communicator)
    {
        string text = Marshal.PtrToStringUTF8((nint)NcclNative.ncclGetErrorString(result)) ?? "no description";
        string? last = Marshal.PtrToStringUTF8((nint)NcclNative.ncclGetLastError(communicator));
        return string.IsNullOrWhiteSpace(last) ? $"{result}: {text}" : $"{result}: {text} ({last.Trim()})";
    }
}
