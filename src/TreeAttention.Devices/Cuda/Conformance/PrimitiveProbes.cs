using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Runs every probe on a device: tensor-core products, matrix loads, asynchronous copies, conversions, shuffles, each alone.</summary>
/// <remarks>
/// The golden data come from the instructions' definitions, not from a device: the emulation and every GPU are held to the
/// same. A wrong primitive is found here by its name, not by the thousand wrong rows that it would cause.
/// </remarks>
internal sealed class PrimitiveProbes(KernelFunctions kernels, DeviceMemoryPool pool, DeviceCopies copies)
{
    private const string Prefix = "probe_";
    private const int InputWords = 256;

    private readonly KernelProgram _program = new("probes.cu", [.. Probe.All.Select(probe => probe.Name)], true);

    /// <summary>Launches all, waits, compares.</summary>
    internal IReadOnlyList<PrimitiveCheck> Run()
    {
        int most = Probe.All.Max(probe => probe.Words.Length) * sizeof(uint);
        nint input = pool.Take(InputWords * sizeof(uint));
        nint output = pool.Take(most);
        using var host = new HostMemory(most, ElementType.Byte);
        copies.Upload<uint>([.. Enumerable.Range(0, InputWords).Select(i => Scrambled((uint)i))], input);
        var checks = new List<PrimitiveCheck>();
        for (int i = 0; i < Probe.All.Count; i++)
        {
            Probe probe = Probe.All[i];
            copies.Fill(output, byte.MaxValue, most);
            var arguments = new ProbeArguments { In = input, Out = output };
            nint function = kernels.Get(_program, i, probe.SharedBytes);
            kernels.Launch(function, (1, 1, 1), probe.Threads, probe.SharedBytes, arguments, probe.Name);
            copies.Copy(new Region(output, most, ElementType.Byte, MemoryPlace.Device), host.Region);
            checks.Add(new PrimitiveCheck(probe.Name[Prefix.Length..], probe.Difference(host.Region.AsSpan<uint>())));
        }

        pool.Give(input);
        pool.Give(output);
        return checks;
    }

    // The numbers that probes.cu makes itself too.
    private static uint Scrambled(uint i)
    {
        i = (i ^ (i >> 16)) * 0x7feb352d;
        i = (i ^ (i >> 15)) * 0x846ca68b;
        return i ^ (i >> 16);
    }
}
