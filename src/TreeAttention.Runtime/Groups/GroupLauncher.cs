using System;
using TreeAttention.Communication;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Brings the ranks of a group together, runs the same work on each, and ends them all with one code.</summary>
public static class GroupLauncher
{
    /// <summary>Runs <paramref name="work"/> once on every rank of this process: on a thread each, or on the one rank that this process is.</summary>
    /// <returns>What rank 0 of this process returned.</returns>
    /// <exception cref="FaultException">The group cannot be formed, or a rank failed.</exception>
    public static FaultCode Run(GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work)
    {
        RequireSupported(options);
        if (environment.SpeaksForAll && DeviceSource.HintOf(options) is { } hint)
        {
            Console.Error.WriteLine($"treeattn: {hint}");
        }

        TransportKind transport = options.Transport == TransportKind.Auto
            ? environment.Launcher.IsPresent ? TransportKind.Mpi : TransportKind.InProcess
            : options.Transport;
        if (transport == TransportKind.Mpi)
        {
            return MpiGroup.Run(options, environment, work);
        }

        if (environment.Launcher is { Size: > 1 } launcher)
        {
            throw new FaultException(
                FaultCode.RanksDisagree,
                $"--transport in-process makes its ranks itself, but {launcher.Name} started {launcher.Size} processes. Leave --transport out, "
                + "or start one process with --ranks.")
            { IsAgreed = true };
        }

        return RunInProcess(options, environment, work);
    }

    internal static int ThreadsOf(GroupOptions options, int ranksOfNode) =>
        options.Threads ?? Math.Max(1, Environment.ProcessorCount / ranksOfNode);

    private static FaultCode RunInProcess(GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work)
    {
        int ranks = options.Ranks ?? 1;
        var results = new FaultCode[ranks];
        var devices = DeviceSource.Open(options, environment);
        using var group = InProcessGroup.Create(ranks, options.Nodes);
        group.Run(rank =>
        {
            int threads = ThreadsOf(options, ranks);
            using IDevice device = devices.Create(threads, rank);
            using StagedTransport? staged = DeviceSource.StagingFor(group.Transports[rank], device);
            var context = new RankContext(staged ?? (ITransport)group.Transports[rank], device, group.Controls[rank]);
            string description = ranks == 1 ? "1 rank in this process" : $"{ranks} in-process ranks";
            using var member = new AttentionGroup(context, threads, description);
            results[rank] = work(member);
        });
        return results[0];
    }

    private static void RequireSupported(GroupOptions options)
    {
        if (options.Transport == TransportKind.Nccl)
        {
            throw new FaultException(
                FaultCode.Unavailable, "--transport nccl: this version connects GPU ranks through the host. Use --transport mpi or in-process.")
            { IsAgreed = true };
        }
    }
}
