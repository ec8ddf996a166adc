using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Diagnostics;
using System.Diagnostics.Metrics;
using System.Linq;

namespace TreeAttention.Runtime.Groups;

/// <summary>What a process that embeds the library can measure and trace: the meter and the activity source <c>TreeAttention</c>.</summary>
/// <remarks>Where nobody listens a step costs the looks whether somebody does, and allocates nothing.</remarks>
internal static class GroupMetrics
{
    private const string Name = "TreeAttention";

    private static readonly ActivitySource _source = new(Name);
    private static readonly Meter _meter = new(Name);
    private static readonly ConcurrentDictionary<ShardedKvCache, byte> _caches = [];
    private static readonly Counter<long> _steps = _meter.CreateCounter<long>("treeattention.steps", "{step}", "Calls of a rank's steps that were done.");
    private static readonly Counter<long> _tokens = _meter.CreateCounter<long>("treeattention.tokens", "{token}", "Tokens that steps took into caches.");
    private static readonly Counter<long> _bytes = _meter.CreateCounter<long>("treeattention.sent", "By", "Payload that steps sent to other ranks.");
    private static readonly Histogram<double> _duration = _meter.CreateHistogram<double>("treeattention.step.duration", "s", "A step on this rank.");
    private static readonly Histogram<double> _compute = _meter.CreateHistogram<double>("treeattention.step.compute", "s", "Of it on the device.");
    private static readonly Histogram<double> _communication =
        _meter.CreateHistogram<double>("treeattention.step.communication", "s", "Of it waiting for other ranks and merging with them.");

    static GroupMetrics()
    {
        _meter.CreateObservableUpDownCounter("treeattention.cache.pages", Pages, "{page}", "Pages of 512 tokens of the caches of this process, used and free.");
    }

    /// <summary>Somebody listens to what a step costs.</summary>
    internal static bool IsMeasured =>
        _steps.Enabled || _tokens.Enabled || _bytes.Enabled || _duration.Enabled || _compute.Enabled || _communication.Enabled;

    /// <summary>A step as an activity, where somebody listens.</summary>
    internal static Activity? Begin(string call, AttentionGroup group)
    {
        Activity? activity = _source.HasListeners() ? _source.StartActivity(call) : null;
        activity?.SetTag("treeattention.rank", group.Rank);
        activity?.SetTag("treeattention.size", group.Size);
        return activity;
    }

    /// <summary>A cache has pages from now on, or no more.</summary>
    internal static void Follow(ShardedKvCache cache) => _caches.TryAdd(cache, 0);

    /// <summary>Counts a step that was done.</summary>
    internal static void Count(string call, int rank, StepCost before, StepCost after, StepTimes times)
    {
        var tags = new TagList { { "treeattention.call", call }, { "treeattention.rank", rank } };
        _steps.Add(1, tags);
        _tokens.Add(after.Tokens - before.Tokens, tags);
        _bytes.Add(after.Bytes - before.Bytes, tags);
        _duration.Record(Stopwatch.GetElapsedTime(before.Ticks, after.Ticks).TotalSeconds, tags);
        _compute.Record((double)times.ComputeTicks / Stopwatch.Frequency, tags);
        _communication.Record((double)times.CommunicationTicks / Stopwatch.Frequency, tags);
    }

    private static IEnumerable<Measurement<int>> Pages()
    {
        foreach (ShardedKvCache cache in _caches.Keys)
        {
            if (cache.Tenancy.HasEnded)
            {
                _caches.TryRemove(cache, out _);
            }
        }

        foreach (IGrouping<int, ShardedKvCache> rank in _caches.Keys.GroupBy(cache => cache.Context.Transport.Rank))
        {
            int free = rank.Sum(cache => cache.Pages.FreeOn(cache.Rank));
            KeyValuePair<string, object?> tag = new("treeattention.rank", rank.Key);
            yield return new Measurement<int>(free, tag, new("state", "free"));
            yield return new Measurement<int>(rank.Sum(cache => cache.Pages.SlotsOn(cache.Rank)) - free, tag, new("state", "used"));
        }
    }
}

/// <summary>What a rank has done up to one moment: tokens taken in, payload sent, the clock.</summary>
/// <param name="Tokens">Over all layers of the step's cache.</param>
/// <param name="Bytes">Of the rank's transport.</param>
/// <param name="Ticks">Of the stopwatch.</param>
internal readonly record struct StepCost(long Tokens, long Bytes, long Ticks);
