using System;
using System.IO;
using System.Linq;
using System.Text.Json;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Cli;

/// <summary>A benchmark that was killed goes on where it was, and loses and repeats no row.</summary>
public sealed class ResumeTests : IDisposable
{
    private static readonly string[] _small = ["--heads", "2", "--kv-heads", "1", "--head-dim", "16", "-n", "1", "-w", "0", "--algorithm", "ring", "--ranks", "2"];
    private readonly CliFiles _files = new();

    private string Out => _files.At("out");

    private string Rows => Path.Join(Out, "results.jsonl");

    [Theory]
    [InlineData("TERM", 143)]
    [InlineData("KILL", 137)]
    public void A_run_that_was_ended_is_resumed_to_the_table_of_an_unbroken_one(string signal, int code)
    {
        using (var process = TreeattnProcess.Start(Bench("256k")))
        {
            int program = Assert.Single(process.Ranks(1));
            Await(() => File.Exists(Rows) && File.ReadAllLines(Rows).Length >= 2);
            ProcessTree.Signal(signal, program);
            TreeattnResult ended = process.Wait().Exits(code);
            Assert.True(code == 137 || ended.Errors.Contains("--resume", StringComparison.Ordinal), ended.Errors);
        }

        string[] before = File.ReadAllLines(Path.Join(Out, "progress.jsonl"))[1..];
        string[] kept = File.ReadAllLines(Rows)[..before.Length];
        File.AppendAllText(Rows, "{\"algorithm\":\"ri"); // a row that was being written

        TreeattnResult resumed = TreeattnProcess.Run([.. Bench("256k"), "--resume", "--json"]).Exits(0);

        string[] rows = File.ReadAllLines(Rows);
        Assert.Equal(Enumerable.Range(6, 13).Select(power => 1 << power), rows.Select(row => JsonDocument.Parse(row).RootElement.GetProperty("context").GetInt32()));
        Assert.Equal(kept, rows[..kept.Length]);
        Assert.Equal(rows, resumed.Output.TrimEnd('\n').Split('\n'));
    }

    [Fact]
    public void Another_benchmark_is_not_resumed_and_nothing_is_lost()
    {
        TreeattnProcess.Run(Bench("128")).Exits(0);
        string[] rows = File.ReadAllLines(Rows);

        TreeattnProcess.Run([.. Bench("128"), "--resume", "--dtype", "f16"]).Exits(2).Says("cannot be resumed", "--dtype f32");
        TreeattnProcess.Run(Bench("128")).Exits(73).Says("--resume");
        TreeattnProcess.Run([.. Bench("128")[..^2], "--resume"]).Exits(2).Says("--out");

        Assert.Equal(rows, File.ReadAllLines(Rows));
    }

    [Fact]
    public void Two_runs_never_write_into_one_directory()
    {
        using var first = TreeattnProcess.Start(Bench("1g"));
        int program = Assert.Single(first.Ranks(1));
        Await(() => File.Exists(Rows));

        TreeattnProcess.Run([.. Bench("1g"), "--resume"]).Exits(73).Says("another run writes there");

        ProcessTree.Signal("TERM", program);
        first.Wait().Exits(143);
    }

    public void Dispose() => _files.Dispose();

    private string[] Bench(string end) => [.. "bench -b 64 -f 2 -c 0 -e".Split(' '), end, .. _small, "--out", Out];

    private static void Await(Func<bool> happens)
    {
        for (var clock = System.Diagnostics.Stopwatch.StartNew(); !happens(); System.Threading.Thread.Sleep(5))
        {
            Assert.True(clock.Elapsed < ProcessTree.Patience, "It did not happen in time.");
        }
    }
}
