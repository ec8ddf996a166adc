using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Text.Json;
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

/// <summary>The real program as a process, alone or under an MPI launcher.</summary>
internal sealed class TreeattnProcess : IDisposable
{
    /// <summary>The program that was built last.</summary>
    public static string Program { get; } = FindProgram();

    private readonly ProcessTree _tree;

    private TreeattnProcess(ProcessTree tree) => _tree = tree;

    /// <summary>Starts the program alone; the process is the program itself.</summary>
    public static TreeattnProcess Start(IReadOnlyList<string> arguments, params ReadOnlySpan<(string Name, string Value)> variables) =>
        new(new ProcessTree(new ProcessStartInfo(Program, arguments), variables));

    /// <summary>Starts the program by a shell that redirects its streams, as <c>&gt;/dev/full</c>.</summary>
    public static TreeattnProcess StartRedirected(string redirection, IReadOnlyList<string> arguments) =>
        new(new ProcessTree(new ProcessStartInfo("/bin/bash", ["-c", $"exec \"$0\" \"$@\" {redirection}", Program, .. arguments])));

    /// <summary>Starts it as ranks under <c>openmpi</c> or <c>mpich</c>; skips the test where that is not installed.</summary>
    public static TreeattnProcess StartRanks(
        string mpi, int ranks, IReadOnlyList<string> arguments, params ReadOnlySpan<(string Name, string Value)> variables) =>
        StartPrograms(mpi, [(ranks, arguments)], variables);

    /// <summary>Starts ranks whose arguments differ: one program after the other, each with so many ranks.</summary>
    public static TreeattnProcess StartPrograms(
        string mpi, (int Ranks, IReadOnlyList<string> Arguments)[] programs, params ReadOnlySpan<(string Name, string Value)> variables) =>
        new(new ProcessTree(
            ProcessTree.Launch(mpi, [.. programs.Select(program => (program.Ranks, (IReadOnlyList<string>)[Program, .. program.Arguments]))]), variables));

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

    /// <summary>Waits for the end.</summary>
    public TreeattnResult Wait() => new(_tree.Wait(), _tree.Output, _tree.Errors);

    /// <summary>The processes of the program itself, without the launcher's, once there are so many.</summary>
    public int[] Ranks(int count) => _tree.Await(
        () => _tree.Members().Where(IsProgram).ToArray() is { } found && found.Length == count ? found : null, $"There are no {count} processes of the program.");

    /// <summary>Processes of the run that are still there, after a moment for those that are leaving.</summary>
    public int[] Survivors() => _tree.Survivors(TimeSpan.FromSeconds(5));

    /// <summary>Asks what was started, the launcher where there is one, to end.</summary>
    public void Terminate() => ProcessTree.Signal("TERM", _tree.Id);

    /// <summary>Kills the launcher alone, which no process can catch.</summary>
    public void KillLauncher() => ProcessTree.Signal("KILL", _tree.Id);

    public void Dispose() => _tree.Dispose();

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
