using System.Collections.Generic;
using System.IO;

namespace TreeAttention.Cli;

/// <summary>Counts what passed and what failed, and keeps the failures' texts.</summary>
internal sealed class VerifyTally
{
    private readonly List<string> _failures = [];
    private readonly SortedDictionary<string, (int Passed, int Failed)> _subjects = new(System.StringComparer.Ordinal);

    /// <summary>Checks that held.</summary>
    public int Passed { get; private set; }

    /// <summary>Checks that did not.</summary>
    public int Failed => _failures.Count;

    /// <summary>Counts one check of a subject.</summary>
    public void Count(string subject, bool passed, string whatFailed)
    {
        (int Passed, int Failed) counts = _subjects.GetValueOrDefault(subject);
        _subjects[subject] = passed ? (counts.Passed + 1, counts.Failed) : (counts.Passed, counts.Failed + 1);
        if (passed)
        {
            Passed++;
        }
        else
        {
            _failures.Add($"{subject}: {whatFailed}");
        }
    }

    /// <summary>A line for each subject, then one for each failure, then the closing line.</summary>
    public void Print(TextWriter console)
    {
        foreach ((string subject, (int passed, int failed)) in _subjects)
        {
            console.WriteLine($"{(failed == 0 ? "ok    " : "FAILED")} {subject,-24} {passed} of {passed + failed}");
        }

        foreach (string failure in _failures)
        {
            console.WriteLine($"FAILED {failure}");
        }

        console.WriteLine($"{Passed} passed, {Failed} failed");
    }
}
