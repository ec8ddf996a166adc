using System.Diagnostics;
using System.IO;
using Xunit;

namespace TreeAttention.Testing.Processes;

/// <summary>Runs Python scripts against the system's numpy, the authority on its own format.</summary>
internal static class Numpy
{
    private const string Python = "/usr/bin/python3";

    /// <summary>Runs the script with these arguments and returns what it prints; skips the test where there is no numpy.</summary>
    public static string Run(string script, params string[] arguments)
    {
        Assert.SkipUnless(IsPresent(), "There is no python3 with numpy on this machine.");
        (int code, string output) = Start(script, arguments);
        Assert.True(code == 0, output);
        return output;
    }

    private static bool IsPresent() => File.Exists(Python) && Start("import numpy", []).Code == 0;

    private static (int Code, string Output) Start(string script, string[] arguments)
    {
        var start = new ProcessStartInfo(Python, ["-c", script, .. arguments]) { RedirectStandardOutput = true, RedirectStandardError = true };
        using Process process = Process.Start(start)!;
        System.Threading.Tasks.Task<string> errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, output + errors.GetAwaiter().GetResult());
    }
}
