using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Faults;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda.Driver;

/// <summary>The CUDA driver and NVRTC of this process, loaded and initialised, and how many GPUs they see.</summary>
internal sealed unsafe class CudaPlatform
{
    private CudaPlatform(CudaOptions options, int deviceCount) => (Options, DeviceCount) = (options, deviceCount);

    /// <summary>Where the libraries come from.</summary>
    public CudaOptions Options { get; }

    /// <summary>GPUs of this machine; at least 1.</summary>
    public int DeviceCount { get; }

    /// <summary>Whether there is a driver to load: where there is none, the machine has no NVIDIA GPU that this process could use.</summary>
    public static bool HasDriver(CudaOptions options)
    {
        try
        {
            CudaLibraries.LoadDriver(options.DriverCandidates);
            return true;
        }
        catch (DllNotFoundException)
        {
            return false;
        }
    }

    /// <summary>Loads and initialises.</summary>
    /// <exception cref="FaultException">A library or a GPU is missing (69).</exception>
    public static CudaPlatform Open(CudaOptions options)
    {
        string orElse = options.WayOut is null ? "." : $", or {options.WayOut}.";
        if (!HasDriver(options))
        {
            throw Missing(options.IsEmulated
                ? $"No emulated GPU: {options.DriverCandidates[0]} was not found. Build it with scripts/build.sh --all{orElse}"
                : $"No CUDA device: {options.DriverCandidates[0]} was not found. Install the NVIDIA driver{orElse}");
        }

        CUresult initialised = CudaDriver.cuInit(0);
        int count = 0;
        if (initialised == CUresult.CUDA_SUCCESS)
        {
            initialised = CudaDriver.cuDeviceGetCount(&count);
        }

        if (initialised != CUresult.CUDA_SUCCESS || count == 0)
        {
            string reason = initialised == CUresult.CUDA_SUCCESS ? "sees no GPU" : $"says {CudaFaults.NameOf(initialised)}";
            throw Missing(
                $"No CUDA device: the driver {options.DriverCandidates[0]} {reason}. See what nvidia-smi shows and CUDA_VISIBLE_DEVICES hides{orElse}");
        }

        try
        {
            CudaLibraries.LoadCompiler(options.CompilerCandidates);
        }
        catch (DllNotFoundException)
        {
            throw Missing(
                $"No CUDA compiler: none of {string.Join(", ", options.CompilerCandidates)} was found. Install NVRTC (libnvrtc12), or name it with "
                + $"TREEATTN_NVRTC_LIBRARY{orElse}");
        }

        return new CudaPlatform(options, count);
    }

    /// <summary>Makes sure that a GPU is one that the kernels can be compiled for.</summary>
    /// <exception cref="FaultException">It is too old, or not there (69).</exception>
    public void RequireArchitecture(int ordinal) => CudaContext.RequireArchitecture(ordinal, Options.WayOut);

    private static FaultException Missing(string message) => new(FaultCode.Unavailable, message);
}

/// <summary>Where the CUDA libraries come from and where compiled kernels are kept.</summary>
internal sealed record CudaOptions
{
    /// <summary>Names under which the driver is looked for, in this order.</summary>
    public IReadOnlyList<string> DriverCandidates { get; init; } = ["libcuda.so.1"];

    /// <summary>Names under which the run-time compiler is looked for, in this order.</summary>
    public IReadOnlyList<string> CompilerCandidates { get; init; } =
        ["libnvrtc.so.13", "libnvrtc.so.12", "/usr/local/cuda/lib64/libnvrtc.so.13", "/usr/local/cuda/lib64/libnvrtc.so.12"];

    /// <summary>The libraries are the emulation: kernels run on the CPU.</summary>
    public bool IsEmulated { get; init; }

    /// <summary>What a user can do where there is no GPU, for messages; null for nothing, because it is done already.</summary>
    public string? WayOut { get; init; } = $"run with {Setting.DeviceCpu}";

    /// <summary>Folder of compiled kernels; null keeps none.</summary>
    public string? CacheFolder { get; init; }
}

/// <summary>What the driver answers, as faults the user can act on.</summary>
internal static unsafe class CudaFaults
{
    /// <summary>Throws unless the driver succeeded.</summary>
    /// <param name="result">What the driver answered.</param>
    /// <param name="action">What was attempted: <c>a launch of attend</c>.</param>
    /// <exception cref="FaultException">The device failed (202), in the driver's words.</exception>
    internal static void Check(CUresult result, string action)
    {
        if (result != CUresult.CUDA_SUCCESS)
        {
            throw Of(result, action);
        }
    }

    /// <summary>The fault of a driver call that failed.</summary>
    internal static FaultException Of(CUresult result, string action) => new(
        FaultCode.DeviceFault,
        $"The GPU failed in {action}: {NameOf(result)} ({(uint)result}), {TextOf(result)}. Its context is lost: start again; if it stays, "
        + $"run with {Setting.DeviceCpu}.");

    /// <summary>The driver's name of an error.</summary>
    internal static string NameOf(CUresult result)
    {
        sbyte* text;
        return CudaDriver.cuGetErrorName(result, &text) == CUresult.CUDA_SUCCESS ? Marshal.PtrToStringUTF8((nint)text)! : "unknown error";
    }

    private static string TextOf(CUresult result)
    {
        sbyte* text;
        return CudaDriver.cuGetErrorString(result, &text) == CUresult.CUDA_SUCCESS ? Marshal.PtrToStringUTF8((nint)text)! : "no description";
    }
}
