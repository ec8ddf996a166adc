using System.Text.Json;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Processes;
using TreeAttention.Tests.Cli.Attend;
using Xunit;

namespace TreeAttention.Tests.Cli;

/// <summary>Bytes, messages and collectives of the busiest rank, as the program counts them, are those of the formulas.</summary>
[Collection("mpi")]
public sealed class TrafficTests
{
    private static readonly AttentionShape _shape = new(2, 7, 301, 4, 2, 16, 16); // no length divides by the ranks

    private static readonly string[] _sizes =
    [
        "--batch", "2", "--query-len", "7", "-b", "301", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--dtype", "f16", "-n", "1", "-w",
        "0", "-c", "0", "--json",
    ];

    [Theory, InlineData(1), InlineData(2), InlineData(3), InlineData(5)]
    public void Of_in_process_ranks(int ranks)
    {
        foreach ((string[] added, ShardLayout layout, QueryPlacement placement, int plans) in Choices)
        {
            TreeattnResult result = TreeattnProcess.Run(["bench", "--ranks", $"{ranks}", .. _sizes, .. added]).Exits(0);

            AssertCounted(result, plans, ranks, layout, placement);
        }
    }

    [Theory, InlineData("openmpi", 2), InlineData("openmpi", 3), InlineData("mpich", 3), InlineData("mpich", 4)]
    public void Of_MPI_ranks(string mpi, int ranks)
    {
        foreach ((string[] added, ShardLayout layout, QueryPlacement placement, int plans) in Choices)
        {
            TreeattnResult result = TreeattnProcess.RunRanks(mpi, ranks, ["bench", .. _sizes, .. added]).Exits(0);

            AssertCounted(result, plans, ranks, layout, placement);
        }
    }

    [Fact]
    public void Of_one_call_over_files()
    {
        using var files = new CliFiles();

        TreeattnResult result = AttendFilesTests.Attend(
            files, files.Tensors(_shape, "<f2"), ["--ranks", "4", "--algorithm", "ring-no-overlap", "--query-placement", "sharded", "--json"]).Exits(0);

        AssertCounted(result, 1, 4, ShardLayout.Contiguous, QueryPlacement.Sharded);
    }

    // 8 reductions, 3 rings and gather; rings and gather with sharded queries; the reproducible plan.
    private static (string[] Added, ShardLayout Layout, QueryPlacement Placement, int Plans)[] Choices =>
    [
        (["--shard", "zigzag"], ShardLayout.Zigzag, QueryPlacement.Replicated, 12),
        (["--query-placement", "sharded", "--shard", "striped"], ShardLayout.Striped, QueryPlacement.Sharded, 4),
        (["--reproducible"], ShardLayout.Lanes, QueryPlacement.Replicated, 1),
    ];

    private static void AssertCounted(TreeattnResult result, int plans, int ranks, ShardLayout layout, QueryPlacement placement)
    {
        Assert.Equal(plans, result.JsonLines.Count);
        var shards = new ShardMap(_shape, layout, ranks, ElementType.Float16, valuesInKeys: false);
        foreach (JsonElement row in result.JsonLines)
        {
            string? reduction = row.GetProperty("reduction").GetString();
            ReductionKind kind = reduction switch
            {
                null => ReductionKind.Auto,
                "lanes" => ReductionKind.Lanes,
                _ => ReductionKinds.Parse(reduction),
            };
            var plan = new AttentionPlan(AttentionAlgorithms.Parse(row.GetProperty("algorithm").GetString()!), kind, placement);

            TrafficForecast expected = ExpectedTraffic.Of(plan, shards, new int[ranks]);

            long Counted(string key) => row.GetProperty(key).GetInt64();
            Assert.Equal(
                (plan, expected), (plan, new TrafficForecast(Counted("bytes_sent"), Counted("messages"), Counted("collectives"))));
            Assert.True(ranks == 1 || expected.Bytes > 0);
        }
    }
}
