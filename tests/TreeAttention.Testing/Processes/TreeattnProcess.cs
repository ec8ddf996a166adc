using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text.Json;
using System.Threading.Tasks;
using Xunit;

namespace TreeAttention.Testing.Processes;

/// <summary>How a run of the program ended: exit code, both outputs.</summary>
internal sealed record TreeattnResult(int ExitCode, string Output, string Errors)
{
    /// <summary>The object on the last line of stdout.</summary>
    public JsonElement Json => JsonDocument.Parse(Output.TrimEnd('\n').Split('\n')[^1]).RootElement;

    /// <summary>Every line of stdout that is a JSON object.</summary>
    public IReadOnlyList<JsonElement> JsonLines =>
        [.. Output.Split('\n').Where(line => line.StartsWith('{')).Select(line => JsonDocument.Parse(line).RootElement)];

    /// <summary>Asserts the exit code, showing what was said when it is another.</summary>
    public TreeattnResult Exits(int code)
    {
        Assert.True(ExitCode == code, $"Exit code {ExitCode} instead of {code}.\nstdout: {Output}\nstderr: {Errors}");
        return this;
    }

    /// <summary>Asserts that stderr names all of these, and the first of them in one place only.</summary>
    public TreeattnResult Says(params ReadOnlySpan<string> words)
    {
        foreach (string word in words)
        {
            Assert.Contains(word, Errors, StringComparison.Ordinal);
        }

        if (words.Length > 0)
        {
            int first = Errors.IndexOf(words[0], StringComparison.Ordinal);
            Assert.True(Errors.LastIndexOf(words[0], StringComparison.Ordinal) == first, $"'{words[0]}' is said more than once:\n{Errors}");
        }

        return this;
    }
}

/// <summary>The real program as a process, alone or under an MPI launcher, known by a variable that its processes inherit (MPICH gives each rank a session of its own); no run is longer than a minute.</summary>
internal sealed class TreeattnProcess : IDisposable
{
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(60);
    private static readonly string _program = FindProgram();
    private readonly Process _process;
    private readonly string _mark = $"TREEATTN_TEST_RUN={Guid.NewGuid():N}";
    private readonly Task<string> _output;
    private readonly Task<string> _errors;

    private TreeattnProcess(ProcessStartInfo start)
    {
        start.RedirectStandardInput = true;
        start.RedirectStandardOutput = true;
        start.RedirectStandardError = true;
        start.Environment[_mark.Split('=')[0]] = _mark.Split('=')[1];
        start.Environment["TERM"] = "dumb";
        start.Environment["OMPI_ALLOW_RUN_AS_ROOT"] = "1";
        start.Environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
        _process = Process.Start(start)!;
        _process.StandardInput.Close();
        _output = _process.StandardOutput.ReadToEndAsync();
        _errors = _process.StandardError.ReadToEndAsync();
    }

    /// <summary>Starts the program alone; the process is the program itself.</summary>
    public static TreeattnProcess Start(IReadOnlyList<string> arguments, params ReadOnlySpan<(string Name, string Value)> variables) =>
        new(WithVariables(new ProcessStartInfo(_program, arguments), variables));

    /// <summary>Starts it as ranks under <c>openmpi</c> or <c>mpich</c>; skips the test where that is not installed.</summary>
    public static TreeattnProcess StartRanks(
        string mpi, int ranks, IReadOnlyList<string> arguments, params ReadOnlySpan<(string Name, string Value)> variables) =>
        StartPrograms(mpi, [.. Enumerable.Repeat<(int, IReadOnlyList<string>)>((ranks, arguments), 1)], variables);

    /// <summary>Starts ranks whose arguments differ: one program after the other, each with so many ranks.</summary>
    public static TreeattnProcess StartPrograms(
        string mpi, (int Ranks, IReadOnlyList<string> Arguments)[] programs, params ReadOnlySpan<(string Name, string Value)> variables)
    {
        string launcher = $"/usr/bin/mpiexec.{mpi}";
        Assert.SkipUnless(File.Exists(launcher), $"{launcher} is not installed.");
        string[] options = mpi == "openmpi" ? ["--oversubscribe", "--bind-to", "none"] : [];
        var command = new List<string>(options);
        foreach ((int ranks, IReadOnlyList<string> arguments) in programs)
        {
            string[] separator = command.Count > options.Length ? [":"] : [];
            command.AddRange([.. separator, "-n", ranks.ToString(CultureInfo.InvariantCulture), _program, .. arguments]);
        }

        return new TreeattnProcess(WithVariables(new ProcessStartInfo(launcher, command), variables));
    }

    /// <summary>Runs the program alone to its end.</summary>
    public static TreeattnResult Run(params IReadOnlyList<string> arguments)
    {
        using TreeattnProcess process = Start(arguments);
        return process.Wait();
    }

    /// <summary>Runs it as ranks to their end.</summary>
    public static TreeattnResult RunRanks(string mpi, int ranks, params IReadOnlyList<string> arguments)
    {
        using TreeattnProcess process = StartRanks(mpi, ranks, arguments);
        return process.Wait();
    }

    /// <summary>Waits for the end, at most a minute.</summary>
    public TreeattnResult Wait()
    {
        Assert.True(_process.WaitForExit(_limit), "The program did not end within a minute.");
        Assert.True(Task.WaitAll([_output, _errors], _limit), "The outputs of the program stayed open.");
        return new TreeattnResult(_process.ExitCode, _output.Result, _errors.Result);
    }

    /// <summary>The processes of the program itself, without the launcher's, once there are so many.</summary>
    public int[] Ranks(int count)
    {
        var clock = Stopwatch.StartNew();
        while (clock.Elapsed < _limit && !_process.HasExited)
        {
            int[] found = [.. Members().Where(IsProgram)];
            if (found.Length == count)
            {
                return found;
            }

            System.Threading.Thread.Sleep(20);
        }

        Assert.Fail($"There are no {count} processes of the program.");
        return [];
    }

    /// <summary>Processes of the run that are still there, after a moment for those that are leaving.</summary>
    public int[] Survivors()
    {
        var clock = Stopwatch.StartNew();
        while (Members().Length > 0 && clock.Elapsed < TimeSpan.FromSeconds(5))
        {
            System.Threading.Thread.Sleep(50);
        }

        return Members();
    }

    public static void Signal(string name, int process)
    {
        using var kill = Process.Start("kill", ["-" + name, process.ToString(CultureInfo.InvariantCulture)]);
        kill.WaitForExit();
    }

    /// <summary>Asks what was started, the launcher where there is one, to end.</summary>
    public void Terminate() => Signal("TERM", _process.Id);

    /// <summary>Kills the launcher alone, which no process can catch.</summary>
    public void KillLauncher() => Signal("KILL", _process.Id);

    public void Dispose()
    {
        foreach (int member in Members())
        {
            Signal("KILL", member);
        }

        if (!_process.HasExited)
        {
            _process.Kill();
        }

        _process.WaitForExit();
        _process.Dispose();
    }

    private static ProcessStartInfo WithVariables(ProcessStartInfo start, ReadOnlySpan<(string Name, string Value)> variables)
    {
        foreach ((string name, string value) in variables)
        {
            start.Environment[name] = value;
        }

        return start;
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

    private static bool IsProgram(int process)
    {
        try
        {
            return File.ReadAllText($"/proc/{process}/comm").TrimEnd() == "treeattn";
        }
        catch (IOException)
        {
            return false;
        }
    }

    private static string FindProgram()
    {
        string[] places = ["artifacts/treeattn/treeattn", "artifacts/bin/TreeAttention.Cli/release_linux-x64/treeattn"];
        for (string? folder = AppContext.BaseDirectory; folder is not null; folder = Path.GetDirectoryName(folder))
        {
            if (places.Select(place => Path.Combine(folder, place)).FirstOrDefault(File.Exists) is { } program)
            {
                return program;
            }
        }

        throw new FileNotFoundException($"The program is not built: there is no {string.Join(" and no ", places)}. Run scripts/build.sh first.");
    }
}
