using System.Collections.Generic;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Cli.Arguments;

/// <summary>What users of the command line write for the settings that messages of the library name.</summary>
internal static class Flags
{
    /// <summary>A flag, or a flag with its value, for each setting.</summary>
    public static IReadOnlyDictionary<Setting, string> Names { get; } = new Dictionary<Setting, string>
    {
        [Setting.Ranks] = "--ranks",
        [Setting.InProcessRanks] = "--ranks",
        [Setting.Nodes] = "--nodes",
        [Setting.StallTimeout] = "--stall-timeout",
        [Setting.JoinTimeout] = "--join-timeout",
        [Setting.Device] = "--device",
        [Setting.Transport] = "--transport",
        [Setting.TransportInProcess] = "--transport in-process",
        [Setting.TransportMpi] = "--transport mpi",
        [Setting.TransportNccl] = "--transport nccl",
        [Setting.DeviceAuto] = "--device auto",
        [Setting.DeviceCpu] = "--device cpu",
        [Setting.DeviceCuda] = "--device cuda",
        [Setting.OversubscribeGpus] = "--oversubscribe-gpus",
        [Setting.Algorithm] = "--algorithm",
        [Setting.AlgorithmTree] = "--algorithm tree",
        [Setting.Reduction] = "--reduction",
        [Setting.ReductionButterfly] = "--reduction butterfly",
        [Setting.ReductionFused] = "--reduction fused",
        [Setting.ReductionOneShot] = "--reduction one-shot",
        [Setting.Reproducible] = "--reproducible",
        [Setting.AskForLanes] = "Leave --algorithm and --shard away",
        [Setting.NodesOfPlan] = "--nodes",
        [Setting.PlacementReplicated] = "--query-placement replicated",
        [Setting.PlacementSharded] = "--query-placement sharded",
        [Setting.ShardContiguous] = "--shard contiguous",
        [Setting.ShardLanes] = "--shard lanes",
        [Setting.ShardLengths] = "--shard-lengths",
        [Setting.Prefill] = "--prefill",
        [Setting.PrefillChunked] = "--prefill chunked",
        [Setting.StorageType] = "--dtype",
        [Setting.StorageFloat32] = "--dtype f32",
        [Setting.StorageBFloat16] = "--dtype bf16",
        [Setting.KeyScale] = "--key-scale",
        [Setting.ValueScale] = "--value-scale",
        [Setting.ValueDim] = "--value-from-key",
        [Setting.ReplicatedCache] = "--algorithm single",
        [Setting.PropagateNonFinite] = "--nan propagate",
        [Setting.Scale] = "--scale",
        [Setting.Causal] = "--causal",
        [Setting.Window] = "--window",
        [Setting.Softcap] = "--softcap",
        [Setting.AlibiSlopes] = "--alibi",
        [Setting.Sinks] = "--sinks",
        [Setting.KeyLengths] = "--key-lengths",
        [Setting.QueryLengths] = "--query-lengths",
        [Setting.KeyStarts] = "--leftpad",
        [Setting.PackedQueries] = "--cu-seqlens-q",
        [Setting.PackedKeys] = "--cu-seqlens-k",
        [Setting.TreeParents] = "--tree-parents",
        [Setting.DfsStart] = "--dfs-start",
        [Setting.DfsEnd] = "--dfs-end",
        [Setting.TailMask] = "--tail-mask",
        [Setting.TailBias] = "--tail-bias",
        [Setting.AxisOrder] = "--layout",
        [Setting.Force] = "--force",
    };
}
