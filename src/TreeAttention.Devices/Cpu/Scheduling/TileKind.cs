namespace TreeAttention.Devices;

/// <summary>Which kernel over which storage type.</summary>
/// <param name="Element">0 fp32, 1 binary16, 2 bfloat16, 3 f8e4m3.</param>
/// <param name="IsPanel">Many query rows: bound by arithmetic, not by reading.</param>
internal readonly record struct TileKind(int Element, bool IsPanel)
{
    /// <summary>Number of kinds.</summary>
    internal const int Kinds = 8;

    /// <summary>0 to <see cref="Kinds"/> - 1.</summary>
    internal int Number => (Element * 2) + (IsPanel ? 1 : 0);
}
