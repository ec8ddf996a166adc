using System.Collections.Generic;

namespace TreeAttention.Devices;

/// <summary>What is compiled together: one source file and the kernels that are wanted of it.</summary>
/// <param name="File">The source's name: <c>states.cu</c>.</param>
/// <param name="Expressions">The kernels as C++ names them: <c>attend_plain&lt;float, 128&gt;</c>.</param>
/// <param name="FusesMultiplyAdd">The compiler may contract a product and a sum into one rounding.</param>
internal sealed record KernelProgram(string File, IReadOnlyList<string> Expressions, bool FusesMultiplyAdd);

/// <summary>What a compiler made of a program.</summary>
/// <param name="Image">A CUBIN, or PTX that ends in a NUL.</param>
/// <param name="Names">The name of each expression inside the image.</param>
internal sealed record CompiledProgram(byte[] Image, IReadOnlyList<string> Names);
