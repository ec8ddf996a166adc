using System;
using System.Diagnostics;
using System.IO;
using System.Runtime.InteropServices;
using System.Threading;
using TreeAttention.Devices.Cuda;
using TreeAttention.Devices.Cuda.Driver;
using Xunit;

namespace TreeAttention.Testing.Devices;

/// <summary>The emulated GPU: the same kernels and the same host code, on the CPU. Built when it is not there; skipped without a C++ compiler.</summary>
internal static class EmulatedCuda
{
    /// <summary>The device whose context a test breaks; no other test uses it.</summary>
    internal const int Breakable = 3;

    private static readonly Lock _gate = new();
    private static readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("treeattn-kernels-");
    private static CudaPlatform? _platform;

    /// <summary>Where this run keeps compiled kernels.</summary>
    internal static string CacheFolder => _folder.FullName;

    /// <summary>Root of the repository.</summary>
    internal static string Root { get; } = FindRoot();

    /// <summary>The emulated driver's file.</summary>
    internal static string Library => Path.Combine(Root, "artifacts", "emulation", "libcuda_emulated.so");

    /// <summary>The emulated driver and compiler.</summary>
    internal static CudaPlatform Platform
    {
        get
        {
            lock (_gate)
            {
                RequireLibrary();
                return _platform ??= CudaPlatform.Open(Options);
            }
        }
    }

    internal static CudaOptions Options => new()
    {
        IsEmulated = true,
        DriverCandidates = [Library],
        CompilerCandidates = [Library],
        CacheFolder = CacheFolder,
    };

    /// <summary>Environment of a program that is to compute on the emulated GPU.</summary>
    internal static (string Name, string Value)[] Variables
    {
        get
        {
            RequireLibrary();
            return [("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", Library), ("XDG_CACHE_HOME", CacheFolder)];
        }
    }

    /// <summary>A device on the emulated GPU.</summary>
    internal static CudaDevice CreateDevice(int ordinal = 0) => new(Platform, ordinal);

    /// <summary>Lets the next operation of an emulated device fail with an error of the driver; its context is to be broken by this test alone.</summary>
    internal static void PlantFault(int device, int code)
    {
        nint export = NativeLibrary.GetExport(NativeLibrary.Load(Library), "emulation_plant_fault");
        Assert.Equal(0, Marshal.GetDelegateForFunctionPointer<Planter>(export)(device, 0, code));
    }

    /// <summary>Builds the library where it is missing; skips the test where it cannot be.</summary>
    internal static void RequireLibrary()
    {
        lock (_gate)
        {
            Assert.SkipUnless(File.Exists("/usr/bin/g++"), "g++ is not installed: no kernel can be compiled for the emulated GPU.");
            if (!File.Exists(Library))
            {
                Assert.SkipUnless(File.Exists("/usr/bin/cmake"), "cmake is not installed: the emulated GPU cannot be built.");
                Run("cmake", "-S", Path.Combine(Root, "native"), "-B", Path.GetDirectoryName(Library)!, "-DTREEATTN_NATIVE_TESTS=OFF");
                Run("cmake", "--build", Path.GetDirectoryName(Library)!);
            }
        }
    }

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    private delegate int Planter(int device, int operation, int code);

    private static string FindRoot()
    {
        for (DirectoryInfo? folder = new(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            if (File.Exists(Path.Combine(folder.FullName, "TreeAttention.Distributed.sln")))
            {
                return folder.FullName;
            }
        }

        throw new DirectoryNotFoundException($"{AppContext.BaseDirectory} lies in no copy of the repository.");
    }

    private static void Run(string program, params string[] arguments)
    {
        using Process process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true })!;
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, $"{program} ended with {process.ExitCode}:\n{output}");
    }
}
