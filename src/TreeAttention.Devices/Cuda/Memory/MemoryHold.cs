namespace TreeAttention.Devices;

/// <summary>What keeps a pool from giving out blocks again that a captured graph works on: all that were taken before the capture ended.</summary>
internal sealed class MemoryHold
{
    /// <summary>The number of the last block that was taken before the capture ended; all while it lasts.</summary>
    internal long LastTaken { get; set; } = long.MaxValue;
}
