using System;
using System.Collections.Generic;
using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using TreeAttention.Distributed.Faults;
using TreeAttention.Runtime.Groups;

namespace TreeAttention.Runtime.Inspection;

/// <summary>What this machine has for attention over ranks, what is missing, and how to get it.</summary>
internal static class MachineInspection
{
    private static readonly string[] _mpiSonames = ["libmpi.so.40", "libmpich.so.12", "libmpi.so.12", "libmpi_abi.so.1"];
    private static readonly string[] _launchers = ["mpiexec.openmpi", "mpiexec.mpich", "mpiexec", "srun"];

    /// <summary>Looks at everything once.</summary>
    public static IReadOnlyList<Finding> Inspect(ProcessEnvironment environment)
    {
        var libraries = new LibrarySearch(environment.LibraryPath);
        return
        [
            new Finding("system", true, $"{RuntimeInformation.OSDescription.Trim()}, {RuntimeInformation.FrameworkDescription}"),
            new Finding("cpu", true, $"{Environment.ProcessorCount} cores available, {VectorUnits()}"),
            Memory(),
            SharedMemory(),
            MpiLibraries(libraries),
            Launchers(environment),
            Launched(environment),
            Library(libraries, "GPU driver", null, ["libcuda.so.1"], $"Install the NVIDIA driver; until then everything runs with {Setting.DeviceCpu}."),
            Library(libraries, "NVRTC", environment.NvrtcLibrary, ["libnvrtc.so.13", "libnvrtc.so.12"], "Install the CUDA run-time compiler (libnvrtc); it is needed only with a GPU."),
            DeviceSource.Inspect($"{Setting.DeviceAuto}", environment),
            Library(libraries, "NCCL", environment.NcclLibrary, ["libnccl.so.2"], "Install NCCL 2; it is needed only between GPUs."),
        ];
    }

    private static string VectorUnits() =>
        Vector512.IsHardwareAccelerated ? "AVX-512" : Vector256.IsHardwareAccelerated ? "AVX2" : "no AVX2: correct but slow";

    private static Finding Memory()
    {
        var kilobytes = File.ReadLines("/proc/meminfo")
            .Select(line => line.Split([':', ' '], StringSplitOptions.RemoveEmptyEntries))
            .Where(parts => parts.Length >= 2)
            .ToDictionary(parts => parts[0], parts => long.Parse(parts[1], CultureInfo.InvariantCulture));
        return new Finding("memory", true, $"{Gibibytes(kilobytes["MemAvailable"] << 10)} available of {Gibibytes(kilobytes["MemTotal"] << 10)}");
    }

    private static Finding SharedMemory()
    {
        const long Enough = 64L << 20;
        if (!Directory.Exists("/dev/shm"))
        {
            return new Finding("shared memory", false, "/dev/shm is not mounted", $"Mount a tmpfs there (containers: --shm-size=1g); {Setting.ReductionOneShot} needs it between processes.");
        }

        long free = new DriveInfo("/dev/shm").AvailableFreeSpace;
        return new Finding("shared memory", free >= Enough, $"/dev/shm has {Gibibytes(free)} free", free >= Enough ? null : "Containers: --shm-size=1g.");
    }

    private static Finding MpiLibraries(LibrarySearch libraries)
    {
        string[] found = [.. _mpiSonames.Select(soname => (Soname: soname, Path: libraries.Find(soname)))
            .Where(library => library.Path is not null)
            .Select(library => $"{library.Soname} ({library.Path})")];
        return found.Length > 0
            ? new Finding("MPI libraries", true, string.Join(", ", found))
            : new Finding("MPI libraries", false, $"none of {string.Join(", ", _mpiSonames)}", "apt-get install openmpi-bin, or mpich; in-process ranks work without.");
    }

    private static Finding Launchers(ProcessEnvironment environment)
    {
        string[] found = [.. _launchers
            .Select(name => environment.SearchPath.Select(folder => Path.Combine(folder, name)).FirstOrDefault(File.Exists))
            .OfType<string>()];
        return found.Length > 0
            ? new Finding("launchers", true, string.Join(", ", found))
            : new Finding("launchers", false, "neither mpiexec nor srun is on the path", "apt-get install openmpi-bin, or mpich.");
    }

    private static Finding Launched(ProcessEnvironment environment) => new(
        "started by", true,
        environment.Launcher is { IsPresent: true } launcher ? $"{launcher.Name}: rank {launcher.Rank} of {launcher.Size}" : "no launcher: in-process ranks");

    private static Finding Library(LibrarySearch libraries, string subject, string? named, string[] sonames, string wayOut)
    {
        string? found = File.Exists(named) ? named : sonames.Select(libraries.Find).OfType<string>().FirstOrDefault();
        return found is not null
            ? new Finding(subject, true, found)
            : new Finding(subject, false, $"no {string.Join(" or ", sonames)}", wayOut);
    }

    private static string Gibibytes(long bytes) => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1073741824.0:F1} GiB");
}

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
