using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text;
using System.Threading;
using Xunit;

namespace TreeAttention.Testing.Processes;

/// <summary>A process that a test started, and all that it starts: the one harness for programs, launchers and their ranks.</summary>
/// <remarks>
/// The processes are known by a variable that all inherit, since MPICH gives each rank a session of its own. Nothing is held to a fixed
/// time: <see cref="Patience"/> follows the machine's own pace, measured once.
/// </remarks>
internal sealed class ProcessTree : IDisposable
{
    private static readonly Lazy<TimeSpan> _patience = new(MeasurePatience);
    private readonly string _mark = $"TREEATTN_TEST_RUN={Guid.NewGuid():N}";
    private readonly Process _first;
    private readonly StringBuilder _output = new();
    private readonly StringBuilder _errors = new();

    /// <summary>Starts a process with no input, and keeps what it writes.</summary>
    public ProcessTree(ProcessStartInfo start, params ReadOnlySpan<(string Name, string Value)> variables)
    {
        start.RedirectStandardInput = true;
        start.RedirectStandardOutput = true;
        start.RedirectStandardError = true;
        start.Environment["TERM"] = "dumb";
        start.Environment["OMPI_ALLOW_RUN_AS_ROOT"] = "1";
        start.Environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
        start.Environment[_mark.Split('=')[0]] = _mark.Split('=')[1];
        foreach ((string name, string value) in variables)
        {
            start.Environment[name] = value;
        }

        _first = Process.Start(start)!;
        _first.StandardInput.Close();
        OutputReader = Keep(_first.StandardOutput, _output);
        ErrorReader = Keep(_first.StandardError, _errors);
    }

    /// <summary>How long a test waits for what takes a second or two on an idle machine: a minute, or more where starting a process is slow.</summary>
    public static TimeSpan Patience => _patience.Value;

    /// <summary>What was written to stdout until now.</summary>
    public string Output => Text(_output);

    /// <summary>What was written to stderr until now.</summary>
    public string Errors => Text(_errors);

    /// <summary>The process that was started: the program, or its launcher.</summary>
    public int Id => _first.Id;

    /// <summary>Exit code of the process that was started, once it has ended.</summary>
    public int ExitCode => _first.ExitCode;

    /// <summary>It has ended.</summary>
    public bool HasExited => _first.HasExited;

    private Thread OutputReader { get; }

    private Thread ErrorReader { get; }

    /// <summary>The command of a launcher, <c>openmpi</c> or <c>mpich</c>, for programs one after the other; skips the test where it is not installed.</summary>
    /// <param name="mpi">Ending of mpiexec's name.</param>
    /// <param name="programs">How many ranks of which command.</param>
    public static ProcessStartInfo Launch(string mpi, params IReadOnlyList<(int Ranks, IReadOnlyList<string> Command)> programs)
    {
        string launcher = $"/usr/bin/mpiexec.{mpi}";
        Assert.SkipUnless(File.Exists(launcher), $"{launcher} is not installed.");
        string[] options = mpi == "openmpi" ? ["--oversubscribe", "--bind-to", "none"] : [];
        IEnumerable<string> parts = programs.SelectMany((program, index) =>
            (string[])[.. index > 0 ? [":"] : Array.Empty<string>(), "-n", program.Ranks.ToString(CultureInfo.InvariantCulture), .. program.Command]);
        return new ProcessStartInfo("setsid", [launcher, .. options, .. parts]);
    }

    /// <summary>Sends a signal by its name.</summary>
    public static void Signal(string name, int process)
    {
        using var kill = Process.Start("kill", ["-" + name, process.ToString(CultureInfo.InvariantCulture)]);
        kill.WaitForExit();
    }

    /// <summary>Waits for the end of the process and of both outputs, as long as <see cref="Patience"/>, and gives its exit code.</summary>
    public int Wait()
    {
        Assert.True(EndsWithin(Patience), $"The process did not end.\n{Output}\n{Errors}");
        Assert.True(OutputReader.Join(Patience) && ErrorReader.Join(Patience), $"An output stayed open.\n{Output}\n{Errors}");
        return _first.ExitCode;
    }

    /// <summary>Whether the process ends within the time.</summary>
    public bool EndsWithin(TimeSpan time) => _first.WaitForExit(time);

    /// <summary>Asks again and again until there is an answer; the test fails when the process ends before, or patience does.</summary>
    public T Await<T>(Func<T?> ask, string what)
        where T : class
    {
        var clock = Stopwatch.StartNew();
        while (clock.Elapsed < Patience && !_first.HasExited)
        {
            if (ask() is { } answer)
            {
                return answer;
            }

            Thread.Sleep(20);
        }

        Assert.Fail($"{what}\n{Output}\n{Errors}");
        return null!;
    }

    /// <summary>Every process of the run that is there now, the launcher's included.</summary>
    public int[] Members() =>
        [.. Directory.EnumerateDirectories("/proc").Select(path => Path.GetFileName(path)).Where(name => char.IsAsciiDigit(name[0]))
            .Select(name => int.Parse(name, CultureInfo.InvariantCulture)).Where(IsMember)];

    /// <summary>Processes of the run that are still there, after a time for those that are leaving.</summary>
    public int[] Survivors(TimeSpan grace)
    {
        var clock = Stopwatch.StartNew();
        while (Members().Length > 0 && clock.Elapsed < grace)
        {
            Thread.Sleep(50);
        }

        return Members();
    }

    /// <summary>Kills whatever of the run is left.</summary>
    public void Dispose()
    {
        foreach (int member in Members())
        {
            Signal("KILL", member);
        }

        if (!_first.HasExited)
        {
            _first.Kill();
        }

        _first.WaitForExit();
        _first.Dispose();
    }

    // A process that does nothing is the unit: 5 ms on an idle machine. The slowest of a few counts.
    private static TimeSpan MeasurePatience()
    {
        TimeSpan slowest = TimeSpan.Zero;
        for (int run = 0; run < 5; run++)
        {
            var clock = Stopwatch.StartNew();
            using var process = Process.Start("/bin/true");
            process.WaitForExit();
            slowest = clock.Elapsed > slowest ? clock.Elapsed : slowest;
        }

        var least = TimeSpan.FromMinutes(1);
        return slowest * 4000 is var scaled && scaled > least ? scaled : least;
    }

    private static Thread Keep(StreamReader reader, StringBuilder text)
    {
        var thread = new Thread(() =>
        {
            char[] buffer = new char[4096];
            for (int count = reader.Read(buffer); count > 0; count = reader.Read(buffer))
            {
                lock (text)
                {
                    text.Append(buffer, 0, count);
                }
            }
        })
        { IsBackground = true };
        thread.Start();
        return thread;
    }

    private static string Text(StringBuilder text)
    {
        lock (text)
        {
            return text.ToString();
        }
    }

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
}
