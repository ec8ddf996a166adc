using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Verify;

/// <summary>One rank's part of <c>treeattn verify</c>: the transport's laws, negative controls, then every case against float64.</summary>
internal sealed class VerifyJob(VerifyRequest request, AttentionGroup group)
{
    private const int RunsOfPromisedBits = 3;

    private static readonly ElementType[] _types = [.. StorageType.Stored.Select(type => type.Type)];

    private readonly VerifyTally _tally = new();
    private long? _reproducibleBits; // of the first such case, the same whatever the ranks

    /// <summary>Does the work; every rank returns the same code.</summary>
    public FaultCode Run()
    {
        RunSettings.Begin(group, "verify");
        group.Agree(
        [
            new("--seed", RunSettings.Text(request.Seed)),
            new("--cases", request.Cases is { } chosen ? RunSettings.Text(chosen) : "all"),
        ]);
        foreach ((string law, bool holds) in TransportLaws.Check(group))
        {
            Settle(law, holds, "the transport gave other values");
        }

        bool commutes = group.Together(() => DeviceLaws.MergeCommutes(group.Context.Device));
        Settle("merges the same in either order", commutes, "a.Merge(b) and b.Merge(a) differ in bits");
        foreach ((string primitive, string? difference) in group.Together(() => DevicePrimitives.Check(group)))
        {
            Settle("GPU primitives", difference is null, difference ?? "another rank's GPU differs from the golden data", primitive);
        }

        var controls = new NegativeControls(group, request.Seed);
        foreach (ElementType type in _types)
        {
            foreach ((string name, bool holds) in controls.Try(type))
            {
                Settle(name, holds, $"the comparison with {type.ShortName()} keys and values did not");
            }

            CheckCase(LongContext(type), "over 10 pages");
        }

        var cases = new VerifyCases(VerifyPlan.All(group), group.Size, request.Seed);
        int count = request.Cases ?? cases.Count;
        for (int i = 0; i < count; i++)
        {
            VerifyCase verifyCase = cases.At(i);
            CheckCase(verifyCase, verifyCase.Layout.Name.Split(':')[0]);
        }

        if (group.IsRoot)
        {
            Print(count, cases);
        }

        return _tally.Failed == 0 ? FaultCode.None : FaultCode.OutsideTolerance;
    }

    // Pages in many lanes, so that every rank of a small group has some.
    private VerifyCase LongContext(ElementType type)
    {
        var shape = new AttentionShape(1, 2, (9 * PageSpan.Keys) + 77, 4, 2, 16, 16);
        var options = new AttentionOptions { Causal = true, AlibiSlopes = [0.001f, 0.002f, 0, -0.001f] };
        return new VerifyCase(
            request.Seed, new AttentionProblem(shape, options), type, ValuesInKeys: false, VerifyPlan.Reproducible, ShardLayout.Lanes);
    }

    /// <summary>Runs one case on every rank and holds it against float64, and against itself where its plan promises bits.</summary>
    /// <param name="verifyCase">The case, the same on every rank.</param>
    /// <param name="variant">What its line counts it under.</param>
    /// <returns>Whether all of it held, the same on every rank.</returns>
    internal bool CheckCase(VerifyCase verifyCase, string variant)
    {
        using var run = new CaseRun(group, verifyCase);
        bool holds = true;
        long[] bits = run.Run();
        if (verifyCase.Plan.PromisesBits)
        {
            bool same = bits.All(rank => rank == bits[0]);
            for (int i = 1; i < RunsOfPromisedBits; i++)
            {
                same &= run.Run().SequenceEqual(bits);
            }

            holds &= Settle("same bits on every rank and run", same, verifyCase.ToString(), verifyCase.Plan.Name);
        }

        if (verifyCase.Plan.IsReproducible)
        {
            holds &= Settle("same bits as one rank alone", run.DigestAlone() == bits[0], verifyCase.ToString(), verifyCase.StorageType.ShortName());
            _reproducibleBits ??= bits[0];
        }

        VerificationRows? expected = run.Expected();
        VerificationReport[] reports = [.. run.Results(bits).Select(result => expected!.Check(result.Output, result.Lse))];
        VerificationReport? worst = reports.MaxBy(report => report.Wrong);
        string found = $"error {worst?.ErrorMax:E2} over {worst?.ErrorBound:E2}, {worst?.WorstRow}; {verifyCase}";
        return Settle(verifyCase.Plan.Name, worst is null or { Wrong: 0 }, found, variant) && holds;
    }

    // Rank 0 judges; every rank counts what any rank found, so that all end with the same code.
    private bool Settle(string subject, bool passed, string whatFailed, string? variant = null)
    {
        bool all = group.Gather(passed ? 1 : 0).All(rank => rank[0] == 1);
        _tally.Count(subject, all, whatFailed, variant);
        return all;
    }

    private void Print(int count, VerifyCases cases)
    {
        TextWriter console = Terminal.Out;
        string bits = $"{_reproducibleBits:x16}";
        console.WriteLine($"# {group.Description}; {group.Context.Device.Description}; seed {request.Seed}");
        console.WriteLine(
            $"# {count} cases of {cases.Count}: {cases.FirstAlone} of a covering array, in which every two plans, layouts, types, sizes and options "
            + $"meet, and {cases.Count - cases.FirstAlone} of one option alone");
        console.WriteLine($"# reproducible bits {bits}: with this seed and kind of device the same on any number of ranks");
        _tally.Print(console);
        if (request.Json)
        {
            console.WriteLine(ResultRow.Line(json =>
            {
                new ResultRow
                {
                    Algorithm = "all",
                    Transport = group.Context.Transport.Name,
                    Device = group.Context.Device.Name,
                    Dtype = "all",
                    Ranks = group.Size,
                }.WriteMembers(json);
                json.WriteNumber("cases", count);
                json.WriteString("reproducible_bits", bits);
                json.WriteNumber("passed", _tally.Passed);
                json.WriteNumber("failed", _tally.Failed);
            }));
        }

        console.Flush();
    }
}

/// <summary>Counts what passed and what failed by subject and by variants of it, and keeps the failures' texts.</summary>
internal sealed class VerifyTally
{
    private readonly List<string> _failures = [];
    private readonly SortedDictionary<string, Subject> _subjects = new(StringComparer.Ordinal);

    /// <summary>Checks that held.</summary>
    public int Passed { get; private set; }

    /// <summary>Checks that did not.</summary>
    public int Failed => _failures.Count;

    /// <summary>Counts one check of a subject.</summary>
    /// <param name="subject">What was checked: a plan, a law.</param>
    /// <param name="passed">It held.</param>
    /// <param name="whatFailed">What a failure is reported with.</param>
    /// <param name="variant">Under what it was checked: a layout; null where there is one way alone.</param>
    public void Count(string subject, bool passed, string whatFailed, string? variant)
    {
        if (!_subjects.TryGetValue(subject, out Subject? counts))
        {
            _subjects[subject] = counts = new Subject();
        }

        counts.Checks++;
        counts.Passed += passed ? 1 : 0;
        Passed += passed ? 1 : 0;
        if (variant is not null)
        {
            counts.Variants[variant] = counts.Variants.GetValueOrDefault(variant) + 1;
        }

        if (!passed)
        {
            _failures.Add($"{subject}: {whatFailed}");
        }
    }

    /// <summary>A line for each subject with its variants, then one for each failure, then the closing line.</summary>
    public void Print(TextWriter console)
    {
        foreach ((string name, Subject counts) in _subjects)
        {
            string state = counts.Passed == counts.Checks ? "ok    " : "FAILED";
            string variants = string.Join(", ", counts.Variants.Select(variant => $"{variant.Key} {variant.Value}"));
            console.WriteLine($"{state} {name,-30} {$"{counts.Passed} of {counts.Checks}",-12} {variants}".TrimEnd());
        }

        foreach (string failure in _failures)
        {
            console.WriteLine($"FAILED {failure}");
        }

        console.WriteLine($"{Passed} passed, {Failed} failed");
    }

    private sealed class Subject
    {
        public int Checks { get; set; }

        public int Passed { get; set; }

        public SortedDictionary<string, int> Variants { get; } = new(StringComparer.Ordinal);
    }
}
