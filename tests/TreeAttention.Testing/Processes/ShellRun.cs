using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Threading.Tasks;
using Xunit;

namespace TreeAttention.Testing.Processes;

/// <summary>A command that ran to its end in a folder, with no environment but the one that is given.</summary>
/// <param name="Code">Exit code.</param>
/// <param name="Output">What it wrote to stdout.</param>
/// <param name="Errors">What it wrote to stderr.</param>
internal sealed record ShellRun(int Code, string Output, string Errors)
{
    /// <summary>What a machine without any set-up has.</summary>
    private const string BarePath = "/usr/bin:/bin";

    /// <summary>Runs a command; it must end within five minutes.</summary>
    public static ShellRun Of(string folder, IReadOnlyList<string> command, params ReadOnlySpan<(string Name, string Value)> variables)
    {
        // By env, so that a program is looked for in the folder and not beside this one.
        var start = new ProcessStartInfo("/usr/bin/env", command)
        {
            WorkingDirectory = folder,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        start.Environment.Clear();
        start.Environment["PATH"] = BarePath;
        foreach ((string name, string value) in variables)
        {
            start.Environment[name] = value;
        }

        using Process process = Process.Start(start)!;
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> errors = process.StandardError.ReadToEndAsync();
        if (!process.WaitForExit(TimeSpan.FromMinutes(5)))
        {
            process.Kill(entireProcessTree: true);
            Assert.Fail($"{string.Join(' ', command)} did not end within five minutes.");
        }

        return new ShellRun(process.ExitCode, output.GetAwaiter().GetResult(), errors.GetAwaiter().GetResult());
    }

    /// <summary>Asserts the exit code, showing what was said when it is another.</summary>
    public ShellRun Exits(int code)
    {
        Assert.True(Code == code, $"Exit code {Code} instead of {code}.\nstdout: {Output}\nstderr: {Errors}");
        return this;
    }
}
