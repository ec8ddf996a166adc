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

    /// <summary>Loads and initialises.</summary>
    /// <exception cref="FaultException">A library or a GPU is missing (69).</exception>
    public static CudaPlatform Open(CudaOptions options)
    {
        Require(
            () => CudaLibraries.LoadDriver(options.DriverCandidates),
            options.IsEmulated
                ? $"No emulated GPU: {options.DriverCandidates[0]} was not found. Build it with scripts/build.sh --all, or run with --device cpu."
                : $"No CUDA device: {options.DriverCandidates[0]} was not found. Install the NVIDIA driver, or run with --device cpu.");
        CUresult initialised = CudaDriver.cuInit(0);
        int count = 0;
        if (initialised == CUresult.CUDA_SUCCESS)
        {
            initialised = CudaDriver.cuDeviceGetCount(&count);
        }

        if (initialised != CUresult.CUDA_SUCCESS || count == 0)
        {
            string reason = initialised == CUresult.CUDA_SUCCESS ? "sees no GPU" : $"says {CudaFaults.NameOf(initialised)}";
            throw new FaultException(
                FaultCode.Unavailable, $"No CUDA device: the driver {options.DriverCandidates[0]} {reason}. Run with --device cpu.");
        }

        Require(
            () => CudaLibraries.LoadCompiler(options.CompilerCandidates),
            $"No CUDA compiler: none of {string.Join(", ", options.CompilerCandidates)} was found. Install NVRTC (libnvrtc12), name it with "
            + "TREEATTN_NVRTC_LIBRARY, or run with --device cpu.");
        return new CudaPlatform(options, count);
    }

    private static void Require(Func<string> load, string missing)
    {
        try
        {
            load();
        }
        catch (DllNotFoundException error)
        {
            throw new FaultException(FaultCode.Unavailable, missing, error);
        }
    }
}
