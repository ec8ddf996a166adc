using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Runtime.Groups;

/// <summary>What ranks that are processes settle before anything else: that each may take part, and that they were asked for one group.</summary>
internal static class FirstAgreement
{
    // A rank that only tells why it cannot take part waits no longer than this for others to hear it.
    private static readonly TimeSpan _refusalLimit = TimeSpan.FromSeconds(5);

    /// <summary>How long a rank waits for the others to come.</summary>
    internal static TimeSpan JoinLimit(GroupOptions options, FaultException? refusal) =>
        refusal is null || options.JoinTimeout < _refusalLimit ? options.JoinTimeout : _refusalLimit;

    /// <summary>Why the options do not fit a group of so many processes; null when they do.</summary>
    internal static FaultException? Misfit(GroupOptions options, int rank, int size)
    {
        string who = rank == 0 ? "" : $"rank {rank}: ";
        return options.Ranks is { } ranks && ranks != size
            ? new FaultException(
                FaultCode.CommandLine,
                $"{who}{Setting.Ranks} {ranks}, but the launcher started {size} processes, and each is one rank. Leave {Setting.Ranks} out.")
            : options.Nodes is { } nodes && nodes.Count != size
                ? new FaultException(
                    FaultCode.CommandLine, $"{who}{Setting.Nodes} names the node of {nodes.Count} ranks, but there are {size}: one for each rank.")
                : null;
    }

    /// <summary>Ends all ranks with one fault where any was refused, does not fit, or was started otherwise than the others. Every rank calls it.</summary>
    /// <param name="control">The control plane of the ranks.</param>
    /// <param name="options">What this rank was asked for.</param>
    /// <param name="environment">What this rank's environment says.</param>
    /// <param name="refusal">Why this rank cannot take part, as a command line that it does not understand; null when it can.</param>
    /// <exception cref="FaultException">The fault of the lowest rank that has one, or what ranks disagree on (78).</exception>
    internal static void Settle(IControlPlane control, GroupOptions options, ProcessEnvironment environment, FaultException? refusal)
    {
        RankAgreement.Settle(control, refusal ?? Misfit(options, control.Rank, control.Size));
        SettingsAgreement.Agree(control, SettingsOf(options, environment));
    }

    private static List<KeyValuePair<string, string>> SettingsOf(GroupOptions options, ProcessEnvironment environment) =>
    [
        new($"{Setting.Transport}", $"{options.Transport}"),
        new($"{Setting.Device}", $"{options.Device}"),
        new($"{Setting.OversubscribeGpus}", $"{options.OversubscribeGpus}"),
        new($"{Setting.Nodes}", options.Nodes is { } nodes ? string.Join(',', nodes) : "as found"),
        new($"{Setting.StallTimeout}", FormattableString.Invariant($"{options.StallTimeout.TotalSeconds}")),
        new("TREEATTN_CUDA", environment.Cuda ?? "unset"),
        new("TREEATTN_MPI_CUDA", environment.MpiCuda ?? "unset"),
    ];
}
