using System;
using System.Collections.Generic;
using TreeAttention.Communication;

namespace TreeAttention.Runtime;

/// <summary>What the process finds in its environment; the one place where variables are read.</summary>
public sealed record ProcessEnvironment
{
    /// <summary>Who launched the process; <see cref="LauncherEnvironment.None"/> when nobody did.</summary>
    internal LauncherEnvironment Launcher { get; init; } = LauncherEnvironment.None;

    /// <summary>A launcher (mpiexec, srun) started this process as one of several.</summary>
    public bool IsLaunched => Launcher.IsPresent;

    /// <summary>This process is rank 0, or alone: it tells what all have to say.</summary>
    public bool SpeaksForAll => Launcher is not { Rank: > 0 };

    /// <summary>TREEATTN_MPI_LIBRARY: the MPI library to load, before every other choice.</summary>
    public string? MpiLibrary { get; init; }

    /// <summary>LD_LIBRARY_PATH.</summary>
    public string? LibraryPath { get; init; }

    /// <summary>The folders of PATH.</summary>
    public IReadOnlyList<string> SearchPath { get; init; } = [];

    /// <summary>Reads the variables of this process.</summary>
    public static ProcessEnvironment Read() => new()
    {
        Launcher = LauncherEnvironment.Read(Environment.GetEnvironmentVariable),
        MpiLibrary = NotEmpty("TREEATTN_MPI_LIBRARY"),
        LibraryPath = NotEmpty("LD_LIBRARY_PATH"),
        SearchPath = (NotEmpty("PATH") ?? "").Split(':', StringSplitOptions.RemoveEmptyEntries),
    };

    private static string? NotEmpty(string variable) => Environment.GetEnvironmentVariable(variable) is { Length: > 0 } value ? value : null;
}
