using System.Runtime.InteropServices;
using TreeAttention.Distributed.Layout;

namespace TreeAttention.Devices.Cuda.Kernels;

// The structs of native/kernels/arguments.cuh, field by field; what each means is said there. Pointers are device addresses.

/// <summary>page_entry</summary>
[StructLayout(LayoutKind.Sequential)]
internal record struct PageEntry
{
    internal long KeyOffset;
    internal long ValueOffset;
    internal int RunFirst;
    internal int RunOffset;
    internal int RunBlock;
    internal int RunStride;
    internal int Count;
    internal int Capacity;

    /// <summary>A page of which so many keys may be there.</summary>
    internal static PageEntry Of(in KeyPage page, int count) => new()
    {
        KeyOffset = page.KeyOffset,
        ValueOffset = page.ValueOffset,
        RunFirst = page.Span.Run.First,
        RunOffset = page.Span.Offset,
        RunBlock = page.Span.Run.Block,
        RunStride = page.Span.Run.Stride,
        Count = count,
        Capacity = page.Capacity,
    };
}

/// <summary>attend_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AttendArguments
{
    internal nint Queries;
    internal nint Contents;
    internal nint Pages;
    internal nint PageRanges;
    internal nint States;
    internal nint QueryIndices;
    internal nint KeyLengths;
    internal nint QueryLengths;
    internal nint KeyStarts;
    internal nint Places;
    internal nint QueryDepths;
    internal nint AlibiSlopes;
    internal nint DfsStart;
    internal nint DfsEnd;
    internal nint DfsPeaks;
    internal nint TailMask;
    internal nint TailBias;
    internal nint Scales;
    internal long StateStride;
    internal int KvHeads;
    internal int Group;
    internal int QueryCount;
    internal int QueryLength;
    internal int KeyLength;
    internal int HeadDim;
    internal int ValueDim;
    internal int ValueStride;
    internal int Splits;
    internal int FirstPage;
    internal int PagesPerSplit;
    internal int Causal;
    internal int WindowLeft;
    internal int WindowRight;
    internal int AlibiPerBatch;
    internal int TailMaskLength;
    internal int TailBiasLength;
    internal int TailBiasPerBatch;
    internal float Scale;
    internal float ScaleRest;
    internal float Softcap;
    internal int DepthsPerBatch;
    internal int Unused0;
    internal int Unused1;
}

/// <summary>precise_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct PreciseArguments
{
    internal AttendArguments Attend;
    internal nint Limits;
    internal nint Slots;
    internal double Scale;
    internal double ScoreLimit;
    internal float ValueLimit;
    internal int Unused;
}

/// <summary>token_place</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct TokenEntry
{
    internal long KeyOffset;
    internal long ValueOffset;
    internal int Slot;
    internal int Unused;
}

/// <summary>append_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AppendArguments
{
    internal nint Keys;
    internal nint Values;
    internal nint Places;
    internal nint Cosine;
    internal nint Sine;
    internal nint Scales;
    internal nint Contents;
    internal nint Limits;
    internal int Tokens;
    internal int KvHeads;
    internal int HeadDim;
    internal int ValueDim;
    internal int Capacity;
    internal int RotaryPairs;
    internal int IsInterleaved;
    internal int Unused;
}

/// <summary>rotate_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct RotateArguments
{
    internal nint From;
    internal nint Into;
    internal nint Cosine;
    internal nint Sine;
    internal int Rows;
    internal int QueryHeads;
    internal int QueryLength;
    internal int HeadDim;
    internal int RotaryPairs;
    internal int IsInterleaved;
}

/// <summary>merge_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct MergeArguments
{
    internal nint Into;
    internal nint From;
    internal long FromStride;
    internal int Rows;
    internal int ValueDim;
    internal int Count;
    internal int Unused0;
    internal int Unused1;
    internal int Unused2;
}

/// <summary>fold_step</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct StateFold
{
    internal int Into;
    internal int From;
}

/// <summary>fold_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct FoldArguments
{
    internal nint States;
    internal nint Steps;
    internal long StateStride;
    internal int Rows;
    internal int ValueDim;
    internal int Count;
    internal int Unused;
}

/// <summary>weigh_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct WeighArguments
{
    internal nint State;
    internal nint Top;
    internal nint Numerator;
    internal nint Denominator;
    internal int Rows;
    internal int ValueDim;
    internal float Unit;
    internal int Unused;
}

/// <summary>unweigh_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct UnweighArguments
{
    internal nint Top;
    internal nint Numerator;
    internal nint Denominator;
    internal nint State;
    internal int Rows;
    internal int ValueDim;
    internal float Unit;
    internal int Unused;
}

/// <summary>probe_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ProbeArguments
{
    internal nint In;
    internal nint Out;
}

/// <summary>ceiling_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct CeilingArguments
{
    internal nint In;
    internal nint Out;
    internal long Count;
}

/// <summary>clear_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ClearArguments
{
    internal nint State;
    internal int Rows;
    internal int ValueDim;
}

/// <summary>finish_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct FinishArguments
{
    internal nint State;
    internal nint Output;
    internal nint Lse;
    internal nint Sinks;
    internal nint QueryIndices;
    internal nint QueryLengths;
    internal int Rows;
    internal int QueryHeads;
    internal int Count;
    internal int ValueDim;
}

/// <summary>convert_arguments</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ConvertArguments
{
    internal nint From;
    internal nint To;
    internal long Count;
}
