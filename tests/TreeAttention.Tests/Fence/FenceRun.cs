using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using System.Text;
using System.Text.RegularExpressions;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Fence;

/// <summary>Runs a case and holds what is seen against its golden lines.</summary>
internal static class FenceRun
{
    private const string UpdateVariable = "TREEATTN_FENCE_UPDATE";
    private const string Tensors = "--query $DIR/query.npy --key $DIR/key.npy --value $DIR/value.npy";

    // Bits depend on the width of vectors: all cases that do not say otherwise run with that of AVX2. No variable of who tests changes a case.
    private static readonly (string, string)[] _environment =
    [
        ("DOTNET_EnableAVX512", "0"), ("LC_ALL", "C"),
        ("TREEATTN_MPI_LIBRARY", ""), ("TREEATTN_MPI_CUDA", ""), ("TREEATTN_CUDA", ""), ("TREEATTN_CUDA_LIBRARY", ""),
        ("TREEATTN_NVRTC_LIBRARY", ""), ("TREEATTN_NCCL_LIBRARY", ""), ("TREEATTN_RENDEZVOUS", ""),
    ];

    /// <summary>Asserts that a case is as its golden file says, or writes there what it is where that is asked for.</summary>
    public static void Hold(string file, string name)
    {
        FenceCase fenced = new FenceFile(file).Case(name);
        foreach (string need in fenced.Of("needs"))
        {
            Assert.SkipUnless(IsThere(need), $"This machine has no {need}.");
        }

        IReadOnlyList<string> seen = Observe(fenced);
        string? difference = Difference(fenced.Expected, seen);
        if (difference is not null && Environment.GetEnvironmentVariable(UpdateVariable) == "1")
        {
            FenceFile.Rewrite(file, name, seen);
            Assert.Skip($"{UpdateVariable} is set: the case was rewritten.");
        }

        Assert.True(difference is null, $"{file}.cases, '{name}' (- expected, + seen; {UpdateVariable}=1 accepts):\n{difference}");
    }

    /// <summary>What a case says and writes, as golden lines.</summary>
    public static IReadOnlyList<string> Observe(FenceCase fenced)
    {
        using var folder = new FenceFolder();
        var seen = new List<string>();
        var variables = new List<(string, string)>(_environment);
        foreach ((string word, string rest) in fenced.Steps)
        {
            switch (word)
            {
                case "needs" or "exact" or "quiet" or "mask":
                    break;
                case "use":
                    Shared(rest).ForEach(folder.Make);
                    break;
                case "file":
                    folder.Make(rest);
                    break;
                case "env":
                    string[] parts = rest.Replace("$DIR", folder.FullName, StringComparison.Ordinal).Split('=', 2);
                    variables.Add((parts[0], parts[1]));
                    break;
                case "run":
                    using (var process = TreeattnProcess.Start(Words(rest, folder), [.. variables]))
                    {
                        Tell(seen, process.Wait(), folder, fenced, FenceRules.Lines);
                    }

                    break;
                case "launch":
                    using (TreeattnProcess process = Launch(rest, folder, variables))
                    {
                        Tell(seen, process.Wait(), folder, fenced, FenceRules.OwnLines);
                    }

                    break;
                case "sum":
                    seen.AddRange(rest.Split(' ').Select(folder.Digest));
                    break;
                case "header":
                    seen.Add(folder.HeaderOf(rest));
                    break;
                case "list":
                    seen.Add(folder.Names());
                    break;
                default:
                    throw new FormatException($"'{word}' in the case '{fenced.Name}' is no step.");
            }
        }

        return seen;
    }

    /// <summary>The lines that differ with those around them, or null.</summary>
    public static string? Difference(IReadOnlyList<string> expected, IReadOnlyList<string> seen)
    {
        if (expected.SequenceEqual(seen))
        {
            return null;
        }

        int same = expected.Zip(seen).TakeWhile(pair => pair.First == pair.Second).Count();
        int left = Math.Min(expected.Count, seen.Count) - same;
        int end = expected.Reverse().Zip(seen.Reverse()).Take(left).TakeWhile(pair => pair.First == pair.Second).Count();
        var text = new StringBuilder();
        Add(' ', expected.Take(same).TakeLast(3));
        Add('-', expected.Skip(same).SkipLast(end));
        Add('+', seen.Skip(same).SkipLast(end));
        Add(' ', expected.TakeLast(end).Take(3));
        return text.ToString();

        void Add(char sign, IEnumerable<string> lines)
        {
            foreach (string line in lines)
            {
                text.Append(sign).Append(' ').Append(line).Append('\n');
            }
        }
    }

    private static void Tell(
        List<string> seen, TreeattnResult result, FenceFolder folder, FenceCase fenced, Func<string, string, IEnumerable<string>> errors)
    {
        seen.Add(string.Create(CultureInfo.InvariantCulture, $"exit {result.ExitCode}"));
        string output = fenced.Of("quiet").Any() ? "" : result.Output;
        seen.AddRange(FenceRules.Output(output, folder.FullName, fenced.Of("exact").Any()).Select(line => $"out|{line}"));
        seen.AddRange(errors(result.Errors, folder.FullName).Select(line => $"err|{Masked(line, fenced)}"));
    }

    private static string Masked(string line, FenceCase fenced) =>
        fenced.Of("mask").Aggregate(line, (text, pattern) => Regex.Replace(text, pattern, "#"));

    // MPI RANKS ARGUMENTS [: RANKS ARGUMENTS]
    private static TreeattnProcess Launch(string rest, FenceFolder folder, List<(string, string)> variables)
    {
        string[] words = rest.Split(' ', 2);
        (int, IReadOnlyList<string>)[] programs = [.. words[1].Split(" : ").Select(program =>
        {
            string[] parts = program.Split(' ', 2);
            return (int.Parse(parts[0], CultureInfo.InvariantCulture), (IReadOnlyList<string>)Words(parts[1], folder));
        })];
        return TreeattnProcess.StartPrograms(words[0], programs, [.. variables]);
    }

    // '' is an empty argument.
    private static string[] Words(string text, FenceFolder folder) =>
    [
        .. text.Replace("$QKV", Tensors, StringComparison.Ordinal).Split(' ', StringSplitOptions.RemoveEmptyEntries)
            .Select(word => word == "''" ? "" : word.Replace("$DIR", folder.FullName, StringComparison.Ordinal)),
    ];

    private static List<string> Shared(string names)
    {
        var shared = new FenceFile("files");
        return [.. names.Split(' ').SelectMany(name => shared.Case(name).Of("file"))];
    }

    private static bool IsThere(string need) => need switch
    {
        "avx2" => Avx2.IsSupported && Fma.IsSupported,
        "avx512" => Avx512F.IsSupported && Avx512BW.IsSupported && Avx512DQ.IsSupported,
        "no-driver" => !NativeLibrary.TryLoad("libcuda.so.1", out _),
        "no-nccl" => !NativeLibrary.TryLoad("libnccl.so.2", out _),
        _ => throw new FormatException($"'{need}' is nothing that a case needs."),
    };
}
