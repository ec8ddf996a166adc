using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.Json;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Processes;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Scripts;

/// <summary>The bundle for GPU machines: runs from any folder with nothing around it, and its scripts over the emulated GPU.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class BundleTests(UnpackedBundle bundle) : IClassFixture<UnpackedBundle>
{
    // One GPU, as on the machines that the scripts are for.
    private static readonly (string, string)[] _emulation =
        [("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", EmulatedCuda.Library), ("TREEATTN_EMULATION_DEVICES", "1")];

    [Fact]
    public void Ranks_of_the_bundled_mpi_attend_and_load_nothing_of_the_machines_own_mpi()
    {
        string output = bundle.Place("output.npy");
        string[] attend =
        [
            "./mpiexec", "-n", "3", "./treeattn", "attend", "--query", "samples/query.npy", "--key", "samples/key.npy", "--value", "samples/value.npy",
            "--causal", "--verify", "--json", "--output", output,
        ];

        ShellRun run = ShellRun.Of(bundle.Folder, attend, ("LD_DEBUG", "files")).Exits(0);

        JsonElement result = JsonDocument.Parse(run.Output.TrimEnd('\n').Split('\n')[^1]).RootElement;
        Assert.Equal((3, 0), (result.GetProperty("ranks").GetInt32(), result.GetProperty("wrong").GetInt32()));
        Assert.True(File.Exists(output));
        const string Loaded = "calling init: ";
        string[] ofMpi = [.. (run.Output + run.Errors).Split('\n').Where(line => line.Contains(Loaded, StringComparison.Ordinal))
            .Select(line => line[(line.IndexOf(Loaded, StringComparison.Ordinal) + Loaded.Length)..])
            .Where(file => file.Contains("mpi", StringComparison.Ordinal) || file.Contains("/mca_", StringComparison.Ordinal) || file.Contains("libopen-", StringComparison.Ordinal))
            .Distinct()];
        Assert.NotEmpty(ofMpi);
        Assert.All(ofMpi, file => Assert.StartsWith(Path.TrimEndingDirectorySeparator(bundle.Folder), file, StringComparison.Ordinal));
    }

    [Fact]
    public void The_check_passes_over_the_emulated_gpu_and_keeps_a_line_for_each_check()
    {
        EmulatedCuda.RequireLibrary();
        string results = bundle.Place("check");

        ShellRun run = ShellRun.Of(bundle.Folder, ["./gpu-check.sh", "--cases", "1", "--ranks", "1 2", "--out", results], _emulation).Exits(0);

        string[] lines = File.ReadAllLines(Path.Combine(results, "checks.tsv"));
        Assert.Matches(@"gpu-check: [1-9]\d* passed, 0 failed, 0 skipped, 2 probes; logs in ", run.Output);
        Assert.Equal(["verify, 1 in-process ranks", "verify, NCCL, 1 rank", "verify, 2 in-process ranks", "verify, 2 MPI ranks"],
            lines.Where(line => line.StartsWith("ok\tverify", StringComparison.Ordinal)).Select(line => line.Split('\t')[1]));
        Assert.Equal(["probe: NCCL, 2 ranks as 2 hosts", "probe: NCCL, 2 ranks on one GPU"],
            lines.Where(line => line.StartsWith("probe\t", StringComparison.Ordinal) && line.Contains("\texit 0: ", StringComparison.Ordinal))
                .Select(line => line.Split('\t')[1]));
        Assert.Contains("GPU primitives", File.ReadAllText(Path.Combine(results, "verify--1-in-process-ranks.log")), StringComparison.Ordinal);
    }

    [Fact]
    public void The_check_fails_where_the_gpu_computes_wrongly()
    {
        EmulatedCuda.RequireLibrary();
        string folder = CheckOf("wrong", "[ \"$5\" = 1 ] && exit 0\necho '3 passed, 1 failed'\nexit 1\n");

        ShellRun run = ShellRun.Of(folder, ["./gpu-check.sh", "--cases", "7", "--ranks", "1", "--out", "out"]).Exits(1);

        Assert.Contains("FAILED   verify, 1 in-process ranks", run.Output, StringComparison.Ordinal);
        Assert.Contains("exit 1: 3 passed, 1 failed", run.Output, StringComparison.Ordinal);
    }

    [Fact]
    public void A_check_that_there_is_no_time_for_is_skipped_and_the_summary_still_comes()
    {
        EmulatedCuda.RequireLibrary();
        string folder = CheckOf("slow", "[ \"$1\" = doctor ] || [ \"$5\" = 1 ] && exit 0\nexec sleep 100\n");

        ShellRun run = ShellRun.Of(folder, ["./gpu-check.sh", "--seconds", "2", "--ranks", "1", "--out", "out"]).Exits(1);

        string[] lines = File.ReadAllLines(Path.Combine(folder, "out", "checks.tsv"));
        Assert.Equal(["skipped", "probe"], lines.Select(line => line.Split('\t')[0]).Distinct());
        Assert.All(lines, line => Assert.EndsWith("no time was left: --seconds 2", line, StringComparison.Ordinal));
        Assert.Matches("gpu-check: 0 passed, 0 failed, 5 skipped, 2 probes", run.Output);
    }

    [Fact]
    public void Without_a_gpu_the_check_says_so_and_ends_with_69()
    {
        Assert.SkipWhen(Directory.Exists("/proc/driver/nvidia"), "This machine has an NVIDIA driver.");

        ShellRun run = ShellRun.Of(bundle.Folder, ["./gpu-check.sh", "--out", bundle.Place("none")]).Exits(69);

        Assert.Contains("No CUDA device: libcuda.so.1 was not found", run.Errors, StringComparison.Ordinal);
        Assert.Contains("nothing was checked", run.Errors, StringComparison.Ordinal);
    }

    [Fact]
    public void The_benchmark_measures_over_the_emulated_gpu_and_never_overwrites()
    {
        EmulatedCuda.RequireLibrary();
        Assert.SkipUnless(File.Exists("/usr/bin/python3"), "python3 is not installed: it drives the benchmark.");
        string results = bundle.Place("bench");
        string[] bench = ["./gpu-bench.sh", "decode", "--contexts", "200", "--match", "128/1/576", "--rounds", "2", "--out", results];

        ShellRun run = ShellRun.Of(bundle.Folder, bench, _emulation).Exits(0);

        IEnumerable<JsonElement> rows = File.ReadLines(Path.Combine(results, "results.jsonl")).Select(line => JsonDocument.Parse(line).RootElement);
        JsonElement ours = rows.Single(row => row.TryGetProperty("contestant", out JsonElement name) && name.GetString() == "treeattn");
        Assert.Equal((200, 128, 576, 512, 0), (Integer(ours, "context"), Integer(ours, "heads"), Integer(ours, "head_dim"), Integer(ours, "value_dim"), Integer(ours, "wrong")));
        Assert.All(["call_us", "read_ratio", "copy_ratio", "fma_ratio"], (string name) => Assert.True(ours.GetProperty(name).GetDouble() > 0));
        Assert.Contains("treeattn bench --device cuda -b 200", ours.GetProperty("command").GetString(), StringComparison.Ordinal);
        Assert.Contains("gpu-bench: nothing wrong", run.Output, StringComparison.Ordinal);
        ShellRun.Of(bundle.Folder, bench, _emulation).Exits(73);
    }

    // A folder with the check and a program that does as it is told.
    private string CheckOf(string name, string program)
    {
        string folder = bundle.Place(name);
        Directory.CreateDirectory(folder);
        File.WriteAllText(Path.Combine(folder, "treeattn"), "#!/bin/sh\n" + program);
        File.Copy(Path.Combine(bundle.Folder, "gpu-check.sh"), Path.Combine(folder, "gpu-check.sh"));
        File.Copy(Path.Combine(bundle.Folder, "libraries.sh"), Path.Combine(folder, "libraries.sh"));
        ShellRun.Of(folder, ["/bin/chmod", "+x", "treeattn"]).Exits(0);
        return folder;
    }

    private static int Integer(JsonElement row, string name) => row.GetProperty(name).GetInt32();
}
