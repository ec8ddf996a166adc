using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Devices.Cuda;

/// <summary>Whether a device does one of the operations that all kernels are built of as it is defined.</summary>
/// <param name="Primitive">The operation and its type: <c>multiply_add&lt;bfloat16&gt;</c>.</param>
/// <param name="Difference">What differs from the golden data; null where nothing does.</param>
internal sealed record PrimitiveCheck(string Primitive, string? Difference);

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

/// <summary>One kernel of <c>probes.cu</c>: how it is launched and what it must answer.</summary>
/// <param name="Name">The kernel as C++ names it.</param>
/// <param name="Threads">Threads of its one block.</param>
/// <param name="SharedBytes">Dynamic shared memory.</param>
/// <param name="Tolerance">How far a float may lie from the expected one, relative to it; 0: the same bits.</param>
/// <param name="Words">The expected words.</param>
internal sealed record Probe(string Name, int Threads, int SharedBytes, double Tolerance, uint[] Words)
{
    private const string Resource = "kernels/probes.golden";

    /// <summary>All probes, in the order of the golden data.</summary>
    internal static IReadOnlyList<Probe> All { get; } = Read();

    /// <summary>What differs from the golden data, in words; null where nothing does.</summary>
    internal string? Difference(ReadOnlySpan<uint> answer)
    {
        int wrong = 0;
        int first = -1;
        for (int i = 0; i < Words.Length; i++)
        {
            if (!Agrees(answer[i], Words[i]))
            {
                first = wrong++ == 0 ? i : first;
            }
        }

        return wrong == 0 ? null : string.Create(
            CultureInfo.InvariantCulture,
            $"{Name}: {wrong} of {Words.Length} words differ from the golden data, first word {first}: {answer[first]:x8} for {Words[first]:x8}");
    }

    private bool Agrees(uint found, uint expected)
    {
        if (found == expected)
        {
            return true;
        }

        double difference = Math.Abs((double)BitConverter.UInt32BitsToSingle(found) - BitConverter.UInt32BitsToSingle(expected));
        return Tolerance > 0 && difference <= Tolerance * Math.Abs(BitConverter.UInt32BitsToSingle(expected));
    }

    // A head line "name threads shared_bytes tolerance words", then the words in hexadecimal; # begins a comment.
    private static List<Probe> Read()
    {
        using var reader = new StreamReader(typeof(Probe).Assembly.GetManifestResourceStream(Resource)!);
        var probes = new List<Probe>();
        while (reader.ReadLine() is { } line)
        {
            if (line.StartsWith('#'))
            {
                continue;
            }

            string[] head = line.Split(' ');
            uint[] words = new uint[int.Parse(head[4], CultureInfo.InvariantCulture)];
            for (int read = 0; read < words.Length;)
            {
                foreach (string word in reader.ReadLine()!.Split(' '))
                {
                    words[read++] = uint.Parse(word, NumberStyles.HexNumber, CultureInfo.InvariantCulture);
                }
            }

            probes.Add(new Probe(
                head[0], int.Parse(head[1], CultureInfo.InvariantCulture), int.Parse(head[2], CultureInfo.InvariantCulture),
                double.Parse(head[3], CultureInfo.InvariantCulture), words));
        }

        return probes;
    }
}
