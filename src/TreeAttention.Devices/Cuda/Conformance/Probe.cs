using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;

namespace TreeAttention.Devices;

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
