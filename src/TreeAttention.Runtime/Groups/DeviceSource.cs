using System;
using System.Collections.Generic;
using System.Diagnostics.Tracing;
using System.IO;
using System.Linq;
using System.Text;
using TreeAttention.Communication.Mpi;
using TreeAttention.Communication.Nccl;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cuda;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Runtime.Groups;

/// <summary>Makes each rank's device by the group's options and the process's environment.</summary>
internal sealed class DeviceSource
{
    /// <summary>What TREEATTN_CUDA says to put the emulation in the place of the GPU's libraries.</summary>
    internal const string Emulated = "emulated";

    private readonly CudaPlatform? _platform;
    private readonly int? _gpu;

    private DeviceSource(CudaPlatform? platform, int? gpu = null) => (_platform, _gpu) = (platform, gpu);

    /// <summary>Finds what the devices of ranks need that live in one process.</summary>
    /// <param name="options">The group's.</param>
    /// <param name="environment">The process's.</param>
    /// <param name="ranksOfNode">Ranks of this machine: each wants a GPU of its own.</param>
    /// <exception cref="FaultException">
    /// A GPU is asked for and the driver, the compiler or the GPU is missing, or there are fewer GPUs than ranks (69); the environment
    /// contradicts itself (2).
    /// </exception>
    internal static DeviceSource Open(GroupOptions options, ProcessEnvironment environment, int ranksOfNode) => options.Device switch
    {
        DeviceKind.Cpu => new DeviceSource(null),
        DeviceKind.Cuda => new DeviceSource(OpenGpus(options, OptionsOf(environment), ranksOfNode), options.Gpu),
        _ => Settle([Probe(options, environment, ranksOfNode)], 0, options),
    };

    /// <summary>The same for a rank that is a process. Every rank calls it, and all compute on one kind of device.</summary>
    /// <inheritdoc cref="Open"/>
    internal static DeviceSource Agree(GroupOptions options, ProcessEnvironment environment, int ranksOfNode, IControlPlane control)
    {
        if (options.Device != DeviceKind.Auto)
        {
            return RankAgreement.Together(control, () => Open(options, environment, ranksOfNode));
        }

        GpuProbe mine = RankAgreement.Together(control, () => Probe(options, environment, ranksOfNode));
        GpuProbe[] all = [.. control.AllGather(mine.ToBytes()).Select(GpuProbe.FromBytes)];
        all[control.Rank] = mine;
        return Settle(all, control.Rank, options);
    }

    /// <summary>What one rank alone would compute on by <see cref="DeviceKind.Auto"/>; nothing where the environment contradicts itself.</summary>
    internal static Finding Inspect(string subject, ProcessEnvironment environment)
    {
        try
        {
            GpuProbe probe = Probe(new GroupOptions(), environment, ranksOfNode: 1);
            string gpu = environment.Cuda == Emulated ? "the GPU that the CPU emulates (TREEATTN_CUDA)" : "the GPU";
            return new Finding(
                subject, true,
                probe.Platform is { } gpus ? $"{gpu}, of which this machine has {gpus.DeviceCount}"
                : probe.Obstacle is { } obstacle ? $"the CPU. {obstacle}"
                : "the CPU: there is no NVIDIA GPU");
        }
        catch (FaultException fault)
        {
            return new Finding(subject, false, fault.Message);
        }
    }

    /// <summary>A rank's device.</summary>
    /// <param name="threads">Threads for what the CPU computes.</param>
    /// <param name="rankOfNode">The rank among those of its node: ranks take the node's GPUs in turn, unless the options name one.</param>
    internal IDevice Create(int threads, int rankOfNode) =>
        _platform is null ? new CpuDevice(threads) : new CudaDevice(_platform, _gpu ?? (rankOfNode % _platform.DeviceCount));

    /// <summary>What stands between a transport of host memory and a device whose memory is its own; null where the transport will do.</summary>
    internal static DeviceTransport? StagingFor(GroupOptions options, ITransport transport, IDevice device) =>
        device is IStagingDevice staging ? new DeviceTransport(transport, staging, warn: message => options.Tell(EventLevel.Warning, message)) : null;

    /// <summary>What stands between an MPI and a device whose memory is its own: the device's addresses where the MPI can use them, else page-locked memory.</summary>
    /// <param name="options">The group's.</param>
    /// <param name="transport">The MPI's.</param>
    /// <param name="device">The rank's.</param>
    /// <param name="isCudaAware">What the MPI says of itself.</param>
    /// <param name="choice">What TREEATTN_MPI_CUDA says instead.</param>
    /// <exception cref="FaultException">The choice is none (2).</exception>
    internal static DeviceTransport? BridgeFor(
        GroupOptions options, ITransport transport, IDevice device, bool isCudaAware, string? choice) =>
        (choice, device) switch
        {
            (not (null or "direct" or "staged"), _) => throw new FaultException(
                FaultCode.CommandLine,
                $"TREEATTN_MPI_CUDA is '{choice}', but it may be 'direct' (MPI gets device addresses) or 'staged' (through host memory). Unset it to do what MPI "
                + "says of itself.")
            { IsAgreed = true },
            (_, not IStagingDevice) => null,
            ("direct", IStagingDevice staging) => new DeviceTransport(transport, staging, MpiTransport.DefaultPieceBytes),
            (null, IStagingDevice staging) when isCudaAware => new DeviceTransport(transport, staging, MpiTransport.DefaultPieceBytes),
            _ => StagingFor(options, transport, device),
        };

    private static CudaPlatform OpenGpus(GroupOptions options, CudaOptions libraries, int ranksOfNode)
    {
        var platform = CudaPlatform.Open(libraries with
        {
            WayOut = options.Device == DeviceKind.Auto ? null
                : options.Transport == TransportKind.Nccl ? NcclSource.WayOut
                : libraries.WayOut,
        });
        if (options.Gpu is { } chosen)
        {
            platform.RequireArchitecture(chosen);
            return platform;
        }

        if (ranksOfNode > platform.DeviceCount && !options.OversubscribeGpus)
        {
            string gpus = platform.DeviceCount == 1 ? "1 GPU" : $"{platform.DeviceCount} GPUs";
            throw new FaultException(
                FaultCode.Unavailable,
                $"This machine has {gpus} for {ranksOfNode} ranks, and each rank takes one. Start at most {platform.DeviceCount} here, or let "
                + $"ranks share a GPU with {Setting.OversubscribeGpus}.");
        }

        for (int gpu = 0; gpu < Math.Min(ranksOfNode, platform.DeviceCount); gpu++)
        {
            platform.RequireArchitecture(gpu);
        }

        return platform;
    }

    // Where the kernel knows a GPU though there is no driver to load, the user would want to know.
    private static GpuProbe Probe(GroupOptions options, ProcessEnvironment environment, int ranksOfNode)
    {
        CudaOptions libraries = OptionsOf(environment);
        if (!libraries.IsEmulated && !HasGpu() && !CudaPlatform.HasDriver(libraries))
        {
            return GpuProbe.NoTrace;
        }

        try
        {
            return new GpuProbe(OpenGpus(options, libraries, ranksOfNode), null);
        }
        catch (FaultException fault) when (fault.Code == FaultCode.Unavailable)
        {
            return new GpuProbe(null, fault.Message);
        }
    }

    // GPUs if all ranks have them; else the CPU, and unless there is no trace of a GPU anywhere, rank 0 says why.
    private static DeviceSource Settle(GpuProbe[] all, int rank, GroupOptions options)
    {
        int without = Array.FindIndex(all, probe => !probe.IsReady);
        if (without < 0)
        {
            return new DeviceSource(all[rank].Platform, options.Gpu);
        }

        int told = Array.FindIndex(all, probe => probe.Obstacle is not null);
        if (rank == 0 && (told >= 0 || all.Any(probe => probe.IsReady)))
        {
            string who = all.Length == 1 ? "" : $"rank {(told < 0 ? without : told)}: ";
            options.Tell(EventLevel.Warning, $"{Setting.DeviceAuto} computes on the CPU. {who}{(told < 0 ? "No GPU driver is there, though other ranks have one." : all[told].Obstacle)}");
        }

        return new DeviceSource(null);
    }

    private static CudaOptions OptionsOf(ProcessEnvironment environment)
    {
        if (environment.Cuda is { } mode && mode != Emulated)
        {
            throw new FaultException(
                FaultCode.CommandLine, $"TREEATTN_CUDA is '{mode}', but 'emulated' is all that it may be. Unset it to use the GPU.");
        }

        var options = new CudaOptions
        {
            CacheFolder = environment.CacheFolder is { } cache ? Path.Combine(cache, "treeattn") : null,
        };
        if (environment.Cuda == Emulated)
        {
            string[] library = [environment.CudaLibrary ?? EmulatedLibrary()];
            return options with { IsEmulated = true, DriverCandidates = library, CompilerCandidates = library };
        }

        return options with
        {
            DriverCandidates = WithFirst(environment.CudaLibrary, options.DriverCandidates),
            CompilerCandidates = WithFirst(environment.NvrtcLibrary, options.CompilerCandidates),
        };
    }

    private static IReadOnlyList<string> WithFirst(string? first, IReadOnlyList<string> others) => first is null ? others : [first, .. others];

    /// <summary>Where the emulation of the GPU's libraries lies.</summary>
    // The build puts the emulation beside the program's own folder, wherever in artifacts/ that is.
    internal static string EmulatedLibrary()
    {
        string inTree = Path.Combine("artifacts", "emulation", "libcuda_emulated.so");
        for (DirectoryInfo? folder = new(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            string place = Path.Combine(folder.FullName, inTree);
            if (File.Exists(place))
            {
                return place;
            }
        }

        return inTree;
    }

    private static bool HasGpu() => Directory.Exists("/dev") && Directory.EnumerateFiles("/dev", "nvidia*").Any(file => char.IsAsciiDigit(file[^1]));
}

/// <summary>What a rank found that may compute on a GPU or not: GPUs that are ready, what is in their way, or no trace of one.</summary>
/// <param name="Platform">The ready GPUs; of another rank's probe none, though it may be ready.</param>
/// <param name="Obstacle">Why there is none, where users would expect one.</param>
internal sealed record GpuProbe(CudaPlatform? Platform, string? Obstacle)
{
    private const byte Ready = 1;

    /// <summary>A machine without any NVIDIA GPU.</summary>
    internal static GpuProbe NoTrace { get; } = new(null, null);

    /// <summary>The rank can compute on GPUs.</summary>
    internal bool IsReady { get; private init; } = Platform is not null;

    /// <summary>What the other ranks have to know.</summary>
    internal byte[] ToBytes() => IsReady ? [Ready] : Obstacle is null ? [] : [0, .. Encoding.UTF8.GetBytes(Obstacle)];

    /// <summary>Another rank's.</summary>
    internal static GpuProbe FromBytes(byte[] bytes) =>
        bytes.Length == 0 ? NoTrace
        : bytes[0] == Ready ? NoTrace with { IsReady = true }
        : new GpuProbe(null, Encoding.UTF8.GetString(bytes.AsSpan(1)));
}

/// <summary>Connects the GPUs of a group by NCCL, by the group's options and the process's environment.</summary>
internal static class NcclSource
{
    /// <summary>What users can do who have no GPU.</summary>
    internal static string WayOut =>
        $"do without NCCL and with {Setting.DeviceCpu}: {Setting.TransportMpi} under mpiexec, {Setting.TransportInProcess} alone";

    private const string Library = "libnccl.so.2";

    /// <summary>Loads NCCL.</summary>
    /// <returns>What it is, for descriptions.</returns>
    /// <exception cref="FaultException">There is none, or it is too old (69).</exception>
    internal static string Open(ProcessEnvironment environment) => NcclTransport.LoadLibrary(
        environment.NcclLibrary is { } named ? [named]
        : environment.Cuda == DeviceSource.Emulated ? [environment.CudaLibrary ?? DeviceSource.EmulatedLibrary()]
        : [Library]);

    /// <summary>Connects this rank. Every rank calls it.</summary>
    internal static NcclTransport Connect(ProcessEnvironment environment, NcclSetUp setUp) =>
        NcclTransport.Connect(setUp with { HostId = environment.NcclHostId, MayShareGpus = environment.NcclSharesGpus });

    /// <summary>What a rank brings whose host memory another transport moves: that one knows the nodes, and gives the memory that ranks of a node share.</summary>
    internal static NcclSetUp Beside(ITransport host, IDevice device, IControlPlane control) =>
        new((IStreamDevice)device, control, host.Nodes, host.Traffic) { SharePeerMemory = host.SharePeerMemory };

    /// <summary>The options of a group that NCCL connects: it computes on GPUs.</summary>
    /// <exception cref="FaultException">It is asked to compute on the CPU (2).</exception>
    internal static GroupOptions OnGpus(GroupOptions options) => options.Device == DeviceKind.Cpu
        ? throw new FaultException(
            FaultCode.CommandLine,
            $"{Setting.TransportNccl} connects GPUs, but {Setting.DeviceCpu} computes on none. Give {Setting.DeviceCuda}, or {Setting.Transport} mpi or in-process.")
        { IsAgreed = true }
        : options with { Device = DeviceKind.Cuda };
}

/// <summary>What one look at the machine found.</summary>
/// <param name="Subject">What was looked at: <c>MPI library</c>.</param>
/// <param name="IsThere">It is there, or large enough.</param>
/// <param name="Detail">What was found, with versions, sizes and paths.</param>
/// <param name="WayOut">How to get what is missing; null when nothing is, or nothing needs it yet.</param>
internal sealed record Finding(string Subject, bool IsThere, string Detail, string? WayOut = null);
