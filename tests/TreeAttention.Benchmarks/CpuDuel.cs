using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.Linq;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cpu.Scheduling;
using TreeAttention.Devices.Cpu.Vectors;

namespace TreeAttention.Benchmarks;

/// <summary>CPU attention against the read and multiply-add ceilings of the same round: decode is bound by the one, prefill by the other.</summary>
/// <remarks>
/// Arguments: threads, rounds, then names to run (a part of a name will do). Compare the last column: the median over rounds of
/// rate / ceiling, with its quartiles. Decode counts bytes of keys and values read once; prefill counts the useful operations of
/// a causal mask, 2·heads·(head_dim + value_dim) for each query and visible key.
/// </remarks>
internal static class CpuDuel
{
    internal static void Run(string[] args)
    {
        int threads = args.Length > 0 ? int.Parse(args[0], CultureInfo.InvariantCulture) : Environment.ProcessorCount;
        int rounds = args.Length > 1 ? int.Parse(args[1], CultureInfo.InvariantCulture) : 9;
        foreach (int bits in Vector512.IsHardwareAccelerated ? new[] { 512, 256 } : [256])
        {
            using var ceilings = new MachineCeilings(threads, 1L << 30, bits);
            using CpuDevice device = bits == 512
                ? new(threads, (count, account) => new TileWorkers<Width512, Vector512<float>>(count, account))
                : new(threads, (count, account) => new TileWorkers<Width256, Vector256<float>>(count, account));
            Console.WriteLine($"# {device.Description}, {rounds} rounds, .NET {Environment.Version}");
            foreach ((string name, AttentionShape shape, ElementType type, AttentionOptions options) in Cases())
            {
                if (args.Length <= 2 || args[2..].Any(part => name.Contains(part, StringComparison.Ordinal)))
                {
                    using var contestant = new DuelContestant(device, shape, type, options);
                    Fight(name, contestant, ceilings, rounds);
                }
            }
        }
    }

    private static IEnumerable<(string Name, AttentionShape Shape, ElementType Type, AttentionOptions Options)> Cases()
    {
        (string, ElementType)[] types = [("f32", ElementType.Float32), ("bf16", ElementType.BFloat16), ("f16", ElementType.Float16)];
        foreach ((string type, ElementType element) in types)
        {
            yield return ($"decode {type} 32/8 64k", new(1, 1, 65_536, 32, 8, 128, 128), element, new());
            yield return ($"decode {type} 8/8 64k", new(1, 1, 65_536, 8, 8, 128, 128), element, new());
            yield return ($"decode {type} 64/4 64k", new(1, 1, 65_536, 64, 4, 128, 128), element, new());
        }

        foreach (int length in new[] { 2048, 4096, 8192 })
        {
            yield return ($"prefill f32 {length}", new(1, length, length, 8, 8, 128, 128), ElementType.Float32, new() { Causal = true });
        }

        yield return ("prefill bf16 2048", new(1, 2048, 2048, 8, 8, 128, 128), ElementType.BFloat16, new() { Causal = true });
        yield return ("prefill f32 2048 alibi", new(1, 2048, 2048, 8, 8, 128, 128), ElementType.Float32, new() { Causal = true, AlibiSlopes = [.. Enumerable.Repeat(0.01f, 8)] });
        yield return ("precise decode f32 32/8 16k", new(1, 1, 16_384, 32, 8, 128, 128), ElementType.Float32, new() { Scale = 100 });
        yield return ("precise prefill f32 1024", new(1, 1024, 1024, 8, 8, 128, 128), ElementType.Float32, new() { Scale = 100, Causal = true });
    }

    private static void Fight(string name, DuelContestant contestant, MachineCeilings ceilings, int rounds)
    {
        contestant.Attend();
        double[] rates = new double[rounds];
        double[] ratios = new double[rounds];
        for (int round = 0; round < rounds; round++)
        {
            double before = contestant.IsDecode ? ceilings.MeasureRead() : ceilings.MeasureMultiplyAdd();
            long start = Stopwatch.GetTimestamp();
            contestant.Attend();
            double seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
            double after = contestant.IsDecode ? ceilings.MeasureRead() : ceilings.MeasureMultiplyAdd();
            rates[round] = contestant.Work / seconds * 1e-9;
            ratios[round] = rates[round] / ((before + after) / 2);
        }

        Array.Sort(rates);
        Array.Sort(ratios);
        Console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{name,-28} {rates[rounds / 2],8:F1} {(contestant.IsDecode ? "GB/s   " : "GFLOP/s")}  of ceiling {ratios[rounds / 2]:F3} [{ratios[rounds / 4]:F3}..{ratios[3 * rounds / 4]:F3}]"));
    }
}
