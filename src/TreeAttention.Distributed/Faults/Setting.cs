using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed.Faults;

/// <summary>What a message tells its reader to set: by default in the library's words, a property or a value of the public face.</summary>
/// <remarks>
/// Messages name settings through this closed list alone. A program whose users set things otherwise gives its own names once, before anything
/// else, as the command line gives its flags. All ranks of a group run one program, so a message that crosses ranks is in the right words already.
/// </remarks>
internal sealed class Setting
{
    private static readonly List<Setting> _all = [];
    private static IReadOnlyDictionary<Setting, string>? _names;

    private Setting(string name)
    {
        Name = name;
        _all.Add(this);
    }

    // The group: which ranks there are, how they talk, what computes.
    public static Setting Ranks { get; } = new("GroupOptions.Ranks");

    public static Setting InProcessRanks { get; } = new("AttentionGroup.JoinInProcess");

    public static Setting Nodes { get; } = new("GroupOptions.Nodes");

    public static Setting StallTimeout { get; } = new("GroupOptions.StallTimeout");

    public static Setting JoinTimeout { get; } = new("GroupOptions.JoinTimeout");

    public static Setting Device { get; } = new("GroupOptions.Device");

    public static Setting Transport { get; } = new("GroupOptions.Transport");

    public static Setting TransportInProcess { get; } = new("TransportKind.InProcess");

    public static Setting TransportMpi { get; } = new("TransportKind.Mpi");

    public static Setting TransportNccl { get; } = new("TransportKind.Nccl");

    public static Setting DeviceAuto { get; } = new("DeviceKind.Auto");

    public static Setting DeviceCpu { get; } = new("DeviceKind.Cpu");

    public static Setting DeviceCuda { get; } = new("DeviceKind.Cuda");

    public static Setting OversubscribeGpus { get; } = new("GroupOptions.OversubscribeGpus");

    // The plan: how the ranks share the work and make one result.
    public static Setting Algorithm { get; } = new("AttentionPlan.Algorithm");

    public static Setting AlgorithmTree { get; } = new("AttentionAlgorithm.Tree");

    public static Setting Reduction { get; } = new("AttentionPlan.Reduction");

    public static Setting ReductionButterfly { get; } = new("ReductionKind.Butterfly");

    public static Setting ReductionFused { get; } = new("ReductionKind.Fused");

    public static Setting ReductionOneShot { get; } = new("ReductionKind.OneShot");

    public static Setting Reproducible { get; } = new("ReductionKind.Lanes");

    public static Setting AskForLanes { get; } = new("Give AttentionAlgorithm.Tree and ShardLayout.Lanes");

    public static Setting NodesOfPlan { get; } = new("AttentionPlan.Nodes");

    public static Setting PlacementReplicated { get; } = new("replicated query placement");

    public static Setting PlacementSharded { get; } = new("sharded query placement");

    public static Setting ShardContiguous { get; } = new("ShardLayout.Contiguous");

    public static Setting ShardLanes { get; } = new("ShardLayout.Lanes");

    public static Setting ShardLengths { get; } = new("ShardLayout.Lengths");

    public static Setting Prefill { get; } = new("PrefillOptions.Method");

    public static Setting PrefillChunked { get; } = new("PrefillMethod.Chunked");

    // Keys and values: what is stored, and where.
    public static Setting StorageType { get; } = new("CacheOptions.Type");

    public static Setting StorageFloat32 { get; } = new("ElementType.Float32");

    public static Setting StorageBFloat16 { get; } = new("ElementType.BFloat16");

    public static Setting KeyScale { get; } = new("KeyValueScales.Key");

    public static Setting ValueScale { get; } = new("KeyValueScales.Value");

    public static Setting ValueDim { get; } = new("CacheOptions.ValueDim");

    public static Setting ReplicatedCache { get; } = new("CacheOptions.Replicated");

    public static Setting PropagateNonFinite { get; } = new("NonFinitePolicy.Propagate");

    // What attention means.
    public static Setting Scale { get; } = new("AttentionOptions.Scale");

    public static Setting Causal { get; } = new("AttentionOptions.Causal");

    public static Setting Window { get; } = new("AttentionOptions.WindowLeft and AttentionOptions.WindowRight");

    public static Setting LocalChunk { get; } = new("AttentionOptions.LocalChunk");

    public static Setting Softcap { get; } = new("AttentionOptions.Softcap");

    public static Setting AlibiSlopes { get; } = new("AttentionOptions.AlibiSlopes");

    public static Setting Sinks { get; } = new("AttentionOptions.Sinks");

    public static Setting KeyLengths { get; } = new("AttentionOptions.KeyLengths");

    public static Setting QueryLengths { get; } = new("AttentionOptions.QueryLengths");

    public static Setting KeyStarts { get; } = new("AttentionOptions.KeyStarts");

    public static Setting PackedQueries { get; } = new("AttentionOptions.PackedQueries");

    public static Setting PackedKeys { get; } = new("AttentionOptions.PackedKeys");

    public static Setting TreeParents { get; } = new("TokenTree.FromParents");

    public static Setting DfsStart { get; } = new("AttentionOptions.DfsStart");

    public static Setting DfsEnd { get; } = new("AttentionOptions.DfsEnd");

    public static Setting TailMask { get; } = new("AttentionOptions.TailMask");

    public static Setting TailBias { get; } = new("AttentionOptions.TailBias");

    public static Setting LseBase { get; } = new("AttentionOptions.LseBase");

    // Files and tensors.
    public static Setting AxisOrder { get; } = new("the order of the axes");

    public static Setting Force { get; } = new("force: true");

    /// <summary>Every setting that a message may name.</summary>
    public static IReadOnlyList<Setting> All => _all;

    /// <summary>The setting in the library's words.</summary>
    public string Name { get; }

    /// <summary>From now on all messages of this process name settings so.</summary>
    /// <exception cref="ArgumentException">A setting has no name among them.</exception>
    public static void UseNames(IReadOnlyDictionary<Setting, string> names) =>
        _names = _all.FirstOrDefault(setting => !names.ContainsKey(setting)) is { } nameless
            ? throw new ArgumentException($"There is no name for {nameless.Name}.", nameof(names))
            : names;

    /// <summary>The setting as the reader of messages knows it.</summary>
    public override string ToString() => _names is null ? Name : _names[this];
}
