using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Cli.Verify;
using TreeAttention.Runtime.Groups;

namespace TreeAttention.Tests.Verification.Mutants;

/// <summary>The cases of <c>treeattn verify</c> on ranks of this process, until one fails.</summary>
/// <remarks>It runs among the assemblies of a <see cref="MutatedRuntime"/>, where its own is loaded once more.</remarks>
internal static class VerifyTrial
{
    private const int Ranks = 3;
    private const int Seed = 20261121; // the program's default

    private static readonly GroupOptions _options =
        new() { Ranks = Ranks, Threads = 1, Device = DeviceKind.Cpu, Transport = TransportKind.InProcess };

    private static VerifyCases? _cases;
    private static List<int> _order = [];

    /// <summary>Runs cases until one fails, or throws: those that failed in the last trials first, then those with one option alone.</summary>
    /// <param name="numbers">Which; null is all.</param>
    /// <returns>The number of the case that failed; null when none did.</returns>
    public static int? Run(int[]? numbers)
    {
        int current = -1;
        bool holds = true;
        try
        {
            GroupLauncher.Run(_options, new ProcessEnvironment(), group =>
            {
                group.Together(() => group.IsRoot ? _cases ??= CreateCases(group) : null);
                var job = new VerifyJob(new VerifyRequest(Seed, null, false), group);
                foreach (int number in numbers ?? [.. _order])
                {
                    current = number; // the same on every rank
                    if (!job.CheckCase(_cases!.At(number), ""))
                    {
                        holds = false;
                        break;
                    }
                }

                return FaultCode.None;
            });
        }
        catch (Exception error) when (error is FaultException or IndexOutOfRangeException or ArgumentException)
        {
            holds = false;
        }

        if (holds)
        {
            return null;
        }

        _order.Remove(current);
        _order.Insert(0, current);
        return current;
    }

    private static VerifyCases CreateCases(AttentionGroup group)
    {
        var cases = new VerifyCases(VerifyPlan.All(group), Ranks, Seed);
        _order = [.. Enumerable.Range(cases.FirstAlone, cases.Count - cases.FirstAlone), .. Enumerable.Range(0, cases.FirstAlone)];
        return cases;
    }
}
