namespace TreeAttention.Devices;

/// <summary>cos and sin of rows of tokens in device memory.</summary>
/// <param name="Cosine">[tokens, pairs]</param>
/// <param name="Sine">[tokens, pairs]</param>
/// <param name="Pairs">Pairs of dimensions that turn; 0: none.</param>
/// <param name="IsInterleaved">A pair is 2i and 2i + 1, not i and i + pairs.</param>
internal readonly record struct DeviceAngles(nint Cosine, nint Sine, int Pairs, bool IsInterleaved);
