using System;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text.RegularExpressions;

namespace TreeAttention.Testing.Processes;

/// <summary>A job of the rank program under a real mpiexec.</summary>
internal sealed partial class MpiJob : IDisposable
{
    private readonly ProcessTree _tree;

    private MpiJob(ProcessTree tree) => _tree = tree;

    /// <summary>What the ranks wrote to their standard output, without the last line's end.</summary>
    internal string Output => _tree.Output.TrimEnd('\n');

    /// <summary>What the ranks and the launcher wrote to their standard error.</summary>
    internal string Errors => _tree.Errors;

    /// <summary>Starts ranks under <c>openmpi</c> or <c>mpich</c>; skips the test when it is not installed.</summary>
    internal static MpiJob Start(string kind, int ranks, string[] arguments, params ReadOnlySpan<(string Name, string Value)> variables)
    {
        string configuration = Path.GetFileName(Path.TrimEndingDirectorySeparator(AppContext.BaseDirectory));
        string program = Path.GetFullPath(Path.Combine(AppContext.BaseDirectory, "../../TreeAttention.Ranks", configuration, "TreeAttention.Ranks.dll"));
        string dotnet = Environment.GetEnvironmentVariable("DOTNET_HOST_PATH") ?? "dotnet";
        return new MpiJob(new ProcessTree(ProcessTree.Launch(kind, (ranks, [dotnet, program, .. arguments])), variables));
    }

    /// <summary>Waits for the end of the launcher and gives its exit code.</summary>
    internal int Wait() => _tree.Wait();

    /// <summary>Whether the launcher ends within the time.</summary>
    internal bool EndsWithin(TimeSpan time) => _tree.EndsWithin(time);

    /// <summary>Process of each rank, once all have told it: <c>rank 2 pid 4242</c>.</summary>
    internal int[] ProcessesOfRanks(int ranks) => _tree.Await(
        () => TellsProcess().Matches(_tree.Output).ToArray() is { } told && told.Length == ranks
            ? told.OrderBy(match => Number(match, 1)).Select(match => Number(match, 2)).ToArray() : null,
        "Not all ranks told their process.");

    /// <summary>Processes of the job that still run after at most two more seconds.</summary>
    internal int[] Survivors() => _tree.Survivors(TimeSpan.FromSeconds(2));

    public void Dispose() => _tree.Dispose();

    private static int Number(Match match, int group) => int.Parse(match.Groups[group].ValueSpan, CultureInfo.InvariantCulture);

    [GeneratedRegex(@"rank (\d+) pid (\d+)(?=\n)")]
    private static partial Regex TellsProcess();
}
