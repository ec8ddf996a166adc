using System.Collections.Generic;
using System.Linq;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Cli;

/// <summary>Command lines that are wrong: 2, nothing on stdout, one complaint.</summary>
public sealed class CommandLineTests
{
    private static readonly AttentionShape _shape = new(1, 2, 9, 2, 1, 8, 8);

    public static TheoryData<string, string> WrongAdditions => new()
    {
        { "--frobnicate", "--frobnicate" },
        { "--ranks 0", "--ranks" },
        { "--ranks x", "--ranks" },
        { "--ranks 99999999999", "--ranks" },
        { "--threads 0", "--threads" },
        { "--shard diagonal", "diagonal" },
        { "--shard diagonal --reproducible", "diagonal" },
        { "--key-scale 2 --dtype f64", "--dtype" },
        { "--shard cyclic:0", "cyclic:0" },
        { "--shard-lengths 3,-1", "--shard-lengths" },
        { "--shard zigzag --shard-lengths 9", "--shard-lengths" },
        { "--window 1", "--window" },
        { "--window 1,-2", "--window" },
        { "--chunk-local 0", "--chunk-local" },
        { "--lse-base 10", "--lse-base" },
        { "--scale nan", "--scale" },
        { "--scale 1,5", "--scale" },
        { "--softcap -1", "--softcap" },
        { "--algorithm star", "star" },
        { "--reduction star", "star" },
        { "--algorithm ring --reduction butterfly", "--reduction" },
        { "--reproducible --shard zigzag", "--reproducible" },
        { "--reproducible --reduction butterfly", "--reproducible" },
        { "--reproducible --algorithm ring", "--reproducible" },
        { "--query-placement sharded", "--query-placement" },
        { "--query-placement sharded --algorithm tree", "--query-placement" },
        { "--value-from-key 4", "--value-from-key" },
        { "--layout bdsh", "--layout" },
        { "--dtype f64", "--dtype" },
        { "--transport pigeon", "--transport" },
        { "--device abacus", "--device" },
        { "--nan maybe", "--nan" },
        { "--repeat 0", "--repeat" },
        { "--warmup -1", "--warmup" },
        { "--nodes 0,1", "--nodes" },
        { "--stall-timeout 0", "--stall-timeout" },
    };

    [Theory, MemberData(nameof(WrongAdditions))]
    public void A_wrong_option_is_named_and_ends_with_2(string addition, string named)
    {
        using var files = new CliFiles();

        TreeattnResult result = TreeattnProcess.Run(["attend", .. files.Tensors(_shape), "--output", files.At("output.npy"), .. addition.Split(' ')]);

        result.Exits(2);
        Assert.Contains(named, result.Errors, System.StringComparison.Ordinal);
        Assert.Empty(result.Output);
        Assert.DoesNotContain("output.npy", files.Names);
    }

    [Theory]
    [InlineData("", "command")]
    [InlineData("atend", "atend")]
    [InlineData("attend --key k.npy --value v.npy --output o.npy", "--query")]
    [InlineData("attend --query q.npy --value v.npy --output o.npy", "--key")]
    [InlineData("attend --query q.npy --key k.npy --output o.npy", "--value")]
    [InlineData("attend --query q.npy --key k.npy --value v.npy", "--output")]
    [InlineData("bench --heads 7 --kv-heads 2", "--heads")]
    [InlineData("bench --heads 7", "--kv-heads 8")]
    [InlineData("bench -e 1K", "--begin 8192")]
    [InlineData("bench -b 0", "-b")]
    [InlineData("bench --head-dim 577", "--head-dim")]
    [InlineData("bench -b 12Q", "12Q")]
    [InlineData("bench -b 4K -e 1K", "-e")]
    [InlineData("bench --query q.npy", "--key")]
    [InlineData("verify --cases 0", "--cases")]
    public void An_incomplete_command_line_ends_with_2(string commandLine, string named)
    {
        TreeattnResult result = TreeattnProcess.Run(commandLine.Split(' ', System.StringSplitOptions.RemoveEmptyEntries));

        result.Exits(2);
        Assert.Contains(named, result.Errors, System.StringComparison.OrdinalIgnoreCase);
        Assert.Empty(result.Output);
    }

    [Theory]
    [InlineData("--device cuda", "run with --device cpu")]
    [InlineData("--transport nccl", "or do without NCCL and with --device cpu: --transport mpi under mpiexec, --transport in-process alone")]
    public void What_this_version_lacks_ends_with_69_and_says_what_works(string addition, string named)
    {
        using var files = new CliFiles();

        TreeattnResult result = TreeattnProcess.Run(
            ["attend", .. files.Tensors(_shape), "--output", files.At("output.npy"), "--ranks", "2", .. addition.Split(' ')]);

        result.Exits(69).Says(named);
        Assert.DoesNotContain("output.npy", files.Names);
    }

    [Theory]
    [InlineData("--version")]
    [InlineData("--help")]
    public void Help_and_version_end_well(string commandLine)
    {
        TreeattnResult result = TreeattnProcess.Run(commandLine.Split(' ')).Exits(0);

        Assert.NotEmpty(result.Output);
        Assert.Empty(result.Errors);
    }

    [Theory]
    [InlineData("attend", "tree|ring|")]
    [InlineData("bench", "tree|ring|")]
    [InlineData("decode", "single|tree|ring|ring-no-overlap|ring-query|gather>")]
    [InlineData("verify", "in-process|mpi|nccl>")]
    public void Help_names_choices_and_defaults_as_they_are_written(string command, string choices)
    {
        TreeattnResult result = TreeattnProcess.Run([command, "--help"]).Exits(0);

        Assert.Contains(choices, result.Output, System.StringComparison.Ordinal);
        Assert.DoesNotMatch(@"default: [A-Z]|[<|][A-Z][a-z]+[|>]", result.Output);
    }

    [Theory]
    [InlineData("openmpi", "--shard diagonal")]
    [InlineData("mpich", "--shard diagonal")]
    [InlineData("openmpi", "--ranks 3")]
    [InlineData("mpich", "--ranks 3")]
    public void Under_a_launcher_a_wrong_command_line_is_told_once(string mpi, string addition)
    {
        using var files = new CliFiles();
        IReadOnlyList<string> arguments = ["attend", .. files.Tensors(_shape), "--output", files.At("output.npy"), .. addition.Split(' ')];

        TreeattnResult result = TreeattnProcess.RunRanks(mpi, 2, arguments).Exits(2);

        Assert.Empty(result.Output);
        Assert.Single(result.Errors.Split('\n'), line => line.StartsWith("treeattn: ", System.StringComparison.Ordinal));
        Assert.Equal(3, files.Names.Length);
        Assert.Contains(addition.Split(' ').First(), result.Errors, System.StringComparison.Ordinal);
    }
}
