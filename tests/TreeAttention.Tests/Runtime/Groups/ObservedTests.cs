using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Diagnostics;
using System.Diagnostics.Metrics;
using System.Diagnostics.Tracing;
using System.IO;
using System.Linq;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Runtime.Groups;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>What a service sees of the library: measurements, activities, health, a log; nothing on the console, and nothing that keeps the process.</summary>
public sealed class ObservedTests
{
    private static readonly GroupOptions _options = new() { Device = DeviceKind.Cpu, Threads = 1 };
    private static readonly DecodeCase _decode = new("observed") { Options = new AttentionOptions { Causal = true } };

    [Fact]
    public void Steps_are_measured_and_traced_where_somebody_listens()
    {
        var sums = new ConcurrentDictionary<string, double>();
        var activities = new ConcurrentBag<string>();
        using var listener = new MeterListener { InstrumentPublished = (instrument, self) => Listen(instrument, self) };
        listener.SetMeasurementEventCallback<long>((instrument, value, tags, _) => Add(sums, instrument, value, tags));
        listener.SetMeasurementEventCallback<double>((instrument, value, tags, _) => Add(sums, instrument, value, tags));
        listener.SetMeasurementEventCallback<int>((instrument, value, tags, _) => Add(sums, instrument, value, tags));
        listener.Start();
        using var traces = new ActivityListener
        {
            ShouldListenTo = source => source.Name == "TreeAttention",
            Sample = (ref ActivityCreationOptions<ActivityContext> _) => ActivitySamplingResult.AllData,
            ActivityStopped = activity => activities.Add($"{activity.OperationName} {activity.GetTagItem("treeattention.rank")} of {activity.GetTagItem("treeattention.size")}"),
        };
        ActivitySource.AddActivityListener(traces);

        AttentionGroup.RunInProcess(23, group => // a rank that no other test has
        {
            using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
            using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions(ReductionKind.Butterfly));
            Decode(group, step);
            if (group.Rank == 22)
            {
                listener.RecordObservableInstruments();
            }

            Decode(group, step, tokens: 0);
        }, _options);

        Assert.Equal(2, sums["treeattention.steps"]);
        Assert.Equal(_decode.Rows, sums["treeattention.tokens"]);
        Assert.True(sums["treeattention.sent"] > 0 && sums["treeattention.step.duration"] > 0 && sums["treeattention.step.communication"] > 0);
        Assert.True(sums.ContainsKey("treeattention.cache.pages"));
        Assert.Equal(2, activities.Count(activity => activity == "Decode 22 of 23"));
    }

    [Fact]
    public void A_step_that_nobody_observes_allocates_nothing()
    {
        using AttentionGroup group = AttentionGroup.JoinInProcess(1, _options)[0];
        using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions with { MaxLength = 2000 });
        using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());
        (float[] key, float[] value) = _decode.LastTokens();
        float[] output = new float[_decode.Rows * _decode.QueryHeads * _decode.ValueDim];
        float[] lse = new float[_decode.Rows * _decode.QueryHeads];
        float[] query = _decode.Query;
        long least = long.MaxValue;

        // What the runtime compiles anew in between may allocate: the best of several runs counts.
        for (int run = 0; run < 10; run++)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            for (int i = 0; i < 20; i++)
            {
                group.Decode(step, 0, query, key, value, output, lse, CancellationToken.None);
            }

            least = Math.Min(least, GC.GetAllocatedBytesForCurrentThread() - before);
        }

        Assert.Equal(0, least);
    }

    [Fact]
    public void Health_tells_who_is_in_what_for_how_long()
    {
        using var inside = new ManualResetEventSlim();
        using var seen = new ManualResetEventSlim();
        IReadOnlyList<RankHealth>? health = null;

        AttentionGroup.RunInProcess(2, group =>
        {
            if (group.Rank == 0)
            {
                inside.Wait(TestContext.Current.CancellationToken);
                Thread.Sleep(50);
                health = group.Health;
                seen.Set();
            }

            group.Together(() =>
            {
                inside.Set();
                seen.Wait(TestContext.Current.CancellationToken);
            });
        }, _options);

        Assert.Equal([0, 1], health!.Select(rank => rank.Rank));
        Assert.Equal([null, nameof(AttentionGroup.Together)], health!.Select(rank => rank.Call));
        Assert.True(health![1].SinceProgress >= TimeSpan.FromMilliseconds(40), $"{health[1]}");
    }

    [Fact]
    public void What_the_library_has_to_say_goes_to_the_log()
    {
        var said = new List<(EventLevel Level, string Message)>();
        ProcessEnvironment environment = ProcessEnvironment.Read() with { Cuda = DeviceSource.Emulated, CudaLibrary = "/nowhere", Launcher = LauncherEnvironment.None };

        AttentionGroup[] groups = GroupMembership.Join(new GroupOptions { Log = (level, message) => said.Add((level, message)) }, environment, 1);
        groups[0].Dispose();

        (EventLevel level, string message) = Assert.Single(said);
        Assert.Equal(EventLevel.Warning, level);
        Assert.Contains("computes on the CPU", message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_process_ends_though_nobody_disposes_of_its_groups_and_nothing_is_on_its_console()
    {
        string configuration = Path.GetFileName(Path.TrimEndingDirectorySeparator(AppContext.BaseDirectory));
        string program = Path.GetFullPath(Path.Combine(AppContext.BaseDirectory, "../../TreeAttention.Ranks", configuration, "TreeAttention.Ranks.dll"));
        string dotnet = Environment.GetEnvironmentVariable("DOTNET_HOST_PATH") ?? "dotnet";

        using var process = new ProcessTree(
            new ProcessStartInfo(dotnet, [program, "undisposed"]), ("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", "/nowhere"));

        Assert.Equal(0, process.Wait());
        Assert.Equal(("", ""), (process.Output, process.Errors));
    }

    private static void Decode(AttentionGroup group, DecodeStep step, int tokens = 1)
    {
        (float[] key, float[] value) = tokens == 0 ? ([], []) : _decode.LastTokens();
        group.Decode(
            step, 0, _decode.Query, key, value, new float[_decode.Rows * _decode.QueryHeads * _decode.ValueDim],
            new float[_decode.Rows * _decode.QueryHeads], TestContext.Current.CancellationToken);
    }

    private static void Listen(Instrument instrument, MeterListener listener)
    {
        if (instrument.Meter.Name == "TreeAttention")
        {
            listener.EnableMeasurementEvents(instrument);
        }
    }

    private static void Add(ConcurrentDictionary<string, double> sums, Instrument instrument, double value, ReadOnlySpan<KeyValuePair<string, object?>> tags)
    {
        foreach ((string name, object? tag) in tags)
        {
            if (name == "treeattention.rank" && tag is 22)
            {
                sums.AddOrUpdate(instrument.Name, value, (_, sum) => sum + value);
            }
        }
    }
}
