using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text.RegularExpressions;
using System.Threading;
using Xunit;

namespace TreeAttention.Testing.Processes;

/// <summary>A job of the rank program under a real mpiexec; its processes are known by a variable that all inherit, since MPICH gives each rank a session of its own.</summary>
internal sealed partial class MpiJob : IDisposable
{
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(40);
    private readonly string _mark = $"TREEATTN_TEST_JOB={Guid.NewGuid():N}";
    private readonly Process _launcher;
    private readonly List<string> _output = [];
    private readonly List<string> _errors = [];

    private MpiJob(ProcessStartInfo start)
    {
        start.Environment[_mark[.._mark.IndexOf('=', StringComparison.Ordinal)]] = _mark[(_mark.IndexOf('=', StringComparison.Ordinal) + 1)..];
        _launcher = Process.Start(start)!;
        _launcher.OutputDataReceived += (_, line) => Keep(_output, line.Data);
        _launcher.ErrorDataReceived += (_, line) => Keep(_errors, line.Data);
        _launcher.BeginOutputReadLine();
        _launcher.BeginErrorReadLine();
    }

    /// <summary>What the ranks wrote to their standard output, in lines.</summary>
    internal string Output => Joined(_output);

    /// <summary>What the ranks and the launcher wrote to their standard error.</summary>
    internal string Errors => Joined(_errors);

    /// <summary>Starts ranks under <c>openmpi</c> or <c>mpich</c>; skips the test when it is not installed.</summary>
    internal static MpiJob Start(string kind, int ranks, string[] arguments, params (string Name, string Value)[] variables)
    {
        string launcher = $"/usr/bin/mpiexec.{kind}";
        Assert.SkipUnless(File.Exists(launcher), $"{launcher} is not installed.");
        string configuration = Path.GetFileName(Path.TrimEndingDirectorySeparator(AppContext.BaseDirectory));
        string program = Path.GetFullPath(Path.Combine(AppContext.BaseDirectory, "../../TreeAttention.Ranks", configuration, "TreeAttention.Ranks.dll"));
        string[] options = kind == "openmpi" ? ["--oversubscribe", "--bind-to", "none"] : [];
        string dotnet = Environment.GetEnvironmentVariable("DOTNET_HOST_PATH") ?? "dotnet";
        string[] command = [launcher, .. options, "-n", ranks.ToString(CultureInfo.InvariantCulture), dotnet, program, .. arguments];
        var start = new ProcessStartInfo("setsid", command) { RedirectStandardOutput = true, RedirectStandardError = true };
        start.Environment["OMPI_ALLOW_RUN_AS_ROOT"] = "1";
        start.Environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
        start.Environment["TERM"] = "dumb";
        foreach ((string name, string value) in variables)
        {
            start.Environment[name] = value;
        }

        return new MpiJob(start);
    }

    /// <summary>Waits for the end of the launcher and gives its exit code; after 40 seconds the test fails.</summary>
    internal int Wait()
    {
        Assert.True(_launcher.WaitForExit(_limit), $"The job did not end.\n{Output}\n{Errors}");
        _launcher.WaitForExit();
        return _launcher.ExitCode;
    }

    /// <summary>Whether the launcher ends within the time.</summary>
    internal bool EndsWithin(TimeSpan time) => _launcher.WaitForExit(time);

    /// <summary>Process of each rank, once all have told it: <c>rank 2 pid 4242</c>.</summary>
    internal int[] ProcessesOfRanks(int ranks)
    {
        var clock = Stopwatch.StartNew();
        while (clock.Elapsed < _limit && !_launcher.HasExited)
        {
            Match[] told = [.. TellsProcess().Matches(Output).Cast<Match>()];
            if (told.Length == ranks)
            {
                return [.. told.OrderBy(match => Number(match, 1)).Select(match => Number(match, 2))];
            }

            Thread.Sleep(20);
        }

        Assert.Fail($"Not all ranks told their process.\n{Output}\n{Errors}");
        return [];
    }

    /// <summary>Processes of the job that still run after at most two more seconds.</summary>
    internal int[] Survivors()
    {
        var clock = Stopwatch.StartNew();
        int[] members = Members();
        while (members.Length > 0 && clock.Elapsed < TimeSpan.FromSeconds(2))
        {
            Thread.Sleep(50);
            members = Members();
        }

        return members;
    }

    internal static void Signal(string name, int process)
    {
        using var kill = Process.Start("kill", ["-" + name, process.ToString(CultureInfo.InvariantCulture)]);
        kill.WaitForExit();
    }

    public void Dispose()
    {
        foreach (int member in Members())
        {
            Signal("KILL", member);
        }

        _launcher.WaitForExit();
        _launcher.Dispose();
    }

    private int[] Members() =>
        [.. Directory.EnumerateDirectories("/proc").Select(path => Path.GetFileName(path)).Where(name => char.IsAsciiDigit(name[0]))
            .Select(name => int.Parse(name, CultureInfo.InvariantCulture)).Where(IsMember)];

    // A process that is dead already has no environment.
    private bool IsMember(int process)
    {
        try
        {
            return File.ReadAllText($"/proc/{process}/environ").Split('\0').Contains(_mark);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    private static int Number(Match match, int group) => int.Parse(match.Groups[group].ValueSpan, CultureInfo.InvariantCulture);

    private static void Keep(List<string> lines, string? line)
    {
        if (line != null)
        {
            lock (lines)
            {
                lines.Add(line);
            }
        }
    }

    private static string Joined(List<string> lines)
    {
        lock (lines)
        {
            return string.Join('\n', lines);
        }
    }

    [GeneratedRegex(@"rank (\d+) pid (\d+)")]
    private static partial Regex TellsProcess();
}
