using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;

namespace TreeAttention.Cli;

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
