using System.Diagnostics;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Runs one step of a group again and again and keeps what each run cost on this rank.</summary>
public sealed class StepRecorder(AttentionGroup group, AttentionStep step, QueryBlock queries, KeyValueShard shard)
{
    private readonly RunRecorder _runs = new(group);

    /// <summary>The step that is measured.</summary>
    public AttentionStep Step { get; } = step;

    /// <summary>Runs the step once without counting it.</summary>
    public PartialAttention WarmUp() => Step.Run(queries, shard);

    /// <summary>Runs the step once and keeps its cost.</summary>
    public PartialAttention Run()
    {
        long start = _runs.Begin();
        PartialAttention state = Step.Run(queries, shard);
        _runs.End(Stopwatch.GetTimestamp() - start, Step.Times.ComputeTicks, Step.Times.CommunicationTicks);
        return state;
    }

    /// <inheritdoc cref="RunRecorder.Summarise"/>
    public StepMeasurement Summarise() => _runs.Summarise();
}
