using System;
using System.Collections.Generic;
using System.Linq;
using Xunit;

namespace TreeAttention.Tests.Fence;

/// <summary>The contract of the command line: what is said of wrong command lines, groups and outputs.</summary>
public sealed class RefusalFenceTests
{
    public static IEnumerable<TheoryDataRow<string, string>> Cases => FenceCases.Of("refusals");

    [Theory, MemberData(nameof(Cases))]
    public void A_refusal_says_and_ends_as_before(string file, string name) => FenceRun.Hold(file, name);
}

/// <summary>The contract of the command line: what is said of bad inputs.</summary>
public sealed class InputFenceTests
{
    public static IEnumerable<TheoryDataRow<string, string>> Cases => FenceCases.Of("inputs");

    [Theory, MemberData(nameof(Cases))]
    public void A_bad_input_is_refused_as_before(string file, string name) => FenceRun.Hold(file, name);
}

/// <summary>The contract of the command line: help, reports, JSON, files, bits.</summary>
public sealed class ResultFenceTests
{
    public static IEnumerable<TheoryDataRow<string, string>> Cases => FenceCases.Of("results");

    [Theory, MemberData(nameof(Cases))]
    public void A_run_says_and_writes_as_before(string file, string name) => FenceRun.Hold(file, name);
}

/// <summary>The contract of the command line under an MPI launcher.</summary>
[Collection("mpi")]
public sealed class LaunchedFenceTests
{
    public static IEnumerable<TheoryDataRow<string, string>> Cases => FenceCases.Of("launched");

    [Theory, MemberData(nameof(Cases))]
    public void Ranks_say_and_end_as_before(string file, string name) => FenceRun.Hold(file, name);
}

/// <summary>The fence itself notices what it is there for.</summary>
public sealed class FenceControlTests
{
    [Fact]
    public void Every_golden_file_is_read_by_a_test_and_every_case_has_a_name_of_its_own()
    {
        string[] read = ["inputs", "launched", "refusals", "results"];

        Assert.All(FenceFile.All.Where(file => file != "files"), file => Assert.Contains(file.Split('-')[0], read));
        Assert.All(FenceFile.All, file => Assert.Distinct(new FenceFile(file).Names));
    }

    [Fact]
    public void Every_case_has_golden_lines() =>
        Assert.All(FenceCases.All, row => Assert.NotEmpty(new FenceFile(row.File).Case(row.Name).Expected));

    [Fact]
    public void Any_changed_line_is_noticed()
    {
        FenceCase fenced = new FenceFile("results-files").Case("attend writes an output and a lse");
        IReadOnlyList<string> seen = FenceRun.Observe(fenced);

        Assert.Null(FenceRun.Difference(fenced.Expected, seen));
        Assert.Contains(fenced.Expected, line => line.Contains("sha256", StringComparison.Ordinal));
        for (int line = 0; line < fenced.Expected.Count; line++)
        {
            string[] changed = [.. fenced.Expected];
            changed[line] = changed[line][..^1] + (changed[line][^1] == '0' ? '1' : '0');
            Assert.Contains($"- {changed[line]}\n+ {seen[line]}\n", FenceRun.Difference(changed, seen), StringComparison.Ordinal);
            Assert.Contains($"+ {seen[line]}\n", FenceRun.Difference([.. seen.Where((_, at) => at != line)], seen), StringComparison.Ordinal);
        }
    }

    [Fact]
    public void What_is_measured_is_left_out_and_nothing_else()
    {
        string output = "tree: median 12.5 us, sent 80 bytes, peak 123 bytes\n{\"ranks\":2,\"min_us\":1.5,\"wrong\":null}\n";
        string slower = output.Replace("12.5", " 1003.75", StringComparison.Ordinal).Replace("123", "9", StringComparison.Ordinal).Replace("1.5", "7", StringComparison.Ordinal);

        string[] golden = [.. FenceRules.Output(output, "/nowhere", isExact: false)];

        Assert.Equal(
            ["tree: median # us, sent 80 bytes, peak # bytes", "{", "  ranks: 2", "  min_us: number", "  wrong: null", "}"], golden);
        Assert.Equal(golden, FenceRules.Output(slower, "/nowhere", isExact: false));
        Assert.NotEqual(golden, FenceRules.Output(output.Replace("80", "81", StringComparison.Ordinal), "/nowhere", isExact: false));
        Assert.NotEqual(golden, FenceRules.Output(output.Replace("ranks", "size", StringComparison.Ordinal), "/nowhere", isExact: false));
    }
}
