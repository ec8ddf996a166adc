namespace TreeAttention.Runtime;

/// <summary>One tensor of a safetensors header as its bytes say: data type, shape, and where its data lie behind the header.</summary>
/// <param name="Name">Where its name stands in the header.</param>
/// <param name="TypeName">Data type, as the format names it.</param>
/// <param name="Shape">Length of each axis.</param>
/// <param name="Begin">First byte, counted from the end of the header.</param>
/// <param name="End">The byte after its last.</param>
internal readonly record struct SafetensorsEntry(JsonName Name, string TypeName, long[] Shape, long Begin, long End);
