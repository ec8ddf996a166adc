using System;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

/// <summary>The CUDA driver and NVRTC of this process, loaded and initialised, and how many GPUs they see.</summary>
public sealed unsafe class CudaPlatform
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
