using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>What a benchmark attends over: tensors for the loaders, and a reference for some of the rows.</summary>
internal interface IBenchInputs : IDisposable
{
    /// <summary>Sizes of the call.</summary>
    AttentionShape Shape { get; }

    /// <summary>Storage of keys and values.</summary>
    ElementType StorageType { get; }

    /// <summary>Scales of f8e4m3 storage; null: 1.</summary>
    KeyValueScales? Scales { get; }

    /// <summary>Values are the first elements of the keys.</summary>
    bool ValuesInKeys { get; }

    /// <summary>What ranks compare before work.</summary>
    IEnumerable<KeyValuePair<string, string>> Settings { get; }

    /// <summary>Loads one rank's keys and values.</summary>
    KeyValueShard LoadShard(IDevice device, ShardPlan plan);

    /// <summary>Loads some queries.</summary>
    QueryBlock LoadQueries(IDevice device, int[] indices);

    /// <summary>Computes the rows that results are held against; called once, on rank 0.</summary>
    Func<AttentionResult, VerificationReport> PrepareCheck(AttentionProblem problem);
}
