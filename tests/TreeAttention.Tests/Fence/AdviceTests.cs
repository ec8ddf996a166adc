using System;
using System.Collections.Generic;
using System.Linq;
using System.Text.RegularExpressions;
using Xunit;

namespace TreeAttention.Tests.Fence;

/// <summary>What a refusal advises is done, and leads on: to a result, or at least past the refusal.</summary>
/// <remarks>Refusals are those of the fence; each kind of advice is tried on one of them.</remarks>
public sealed partial class AdviceTests
{
    // What is advised, the case it is tried on, and how its command line changes: words that go, by regex, and words that come.
    private static readonly Remedy[] _remedies =
    [
        new("let it through with --nan propagate", "inputs-tensors", "NaN in queries", "", "--nan propagate"),
        new("let it through with --nan propagate", "inputs-options", "a slope that is NaN", "", "--nan propagate"),
        new("let it through with --nan propagate", "refusals-groups", "decode, NaN in a step", "", "--nan propagate"),
        new("let it through with --nan propagate", "refusals-groups", "bench, NaN in keys", "", "--nan propagate"),
        new("store keys and values with --dtype bf16", "inputs-tensors", "infinity for f8e4m3", "--dtype \\S+", "--dtype bf16"),
        new("Store keys and values with --dtype f32", "inputs-tensors", "too large for f16", "--dtype \\S+", "--dtype f32"),
        new("Give a larger --key-scale", "inputs-tensors", "too large for f8e4m3", "", "--key-scale 2"),
        new("store keys and values with --dtype bf16", "inputs-tensors", "too large for f8e4m3", "--dtype \\S+", "--dtype bf16"),
        new("Give a larger --value-scale", "inputs-tensors", "too large for f8e4m3 with a scale", "--value-scale \\S+", "--value-scale 2"),
        new("Give --dtype f8e4m3 or i8, or no scales", "inputs-tensors", "scales for a key file of f32", "", "--dtype f8e4m3"),
        new("Give --dtype f8e4m3 or i8, or no scales", "inputs-tensors", "scales for a key file of f32", "", "--dtype i8"),
        new("Give --dtype f8e4m3 or i8, or no scales", "inputs-tensors", "scales for a key file of f32", "--key-scale \\S+", ""),
        new("Leave --ranks out", "launched", "openmpi: other numbers of ranks", "--ranks \\S+", ""),
        new("Leave --transport out", "refusals-groups", "in-process under a launcher", "--transport \\S+", "", LeadsToAResult: false),
        new("Choose another output file, or give --force", "results-files", "an existing output is left as it is", "", "--force"),
        new("Choose another output file, or give --force", "results-files", "an existing output is left as it is", "--output \\S+", "--output $DIR/another.npy"),
        new("Give either --value FILE, or --value-from-key N", "refusals-command-line", "attend --value-from-key 4", "--value-from-key \\S+", "", false),
        new("leave --shard, --shard-lengths and --reduction out", "refusals-command-line", "attend --reproducible --shard zigzag", "--shard \\S+", "", false),
        new("leave --value-scale out", "refusals-command-line", "attend --value-from-key 4 --value-scale 2", "--value-scale \\S+", "", false),
        new("Use --prefill chunked", "refusals-groups", "decode, ring prefill of whole caches", "--prefill \\S+", "--prefill chunked"),
        new("Use --prefill chunked", "refusals-command-line", "decode --prefill ring --reproducible", "--prefill \\S+", "--prefill chunked --context 64 --steps 1"),
        new("Use --shard contiguous, or --query-placement", "refusals-groups", "shard lengths and sharded queries", "--shard-lengths \\S+", "--shard contiguous"),
        new("Use --shard contiguous, or --query-placement", "refusals-groups", "shard lengths and sharded queries", "--query-placement \\S+", "--query-placement replicated"),
        new("Give --device cuda, or --transport mpi or in-process", "refusals-groups", "no such transport here", "--transport \\S+", "--transport in-process"),
        new("Give --device cuda, or --transport mpi or in-process", "refusals-groups", "no such transport here", "--device \\S+", "--device cuda", false),
        new("or run with --device cpu", "refusals-groups", "no driver", "--device \\S+", "--device cpu"),
        new("Give a smaller --query-len", "refusals-groups", "decode, too few queries", "--query-len \\S+", "--query-len 3"),
        new("Give fewer --steps or another --context", "refusals-groups", "decode, too many steps", "--steps \\S+", "--steps 3"),
        new("Give fewer --steps or another --context", "refusals-groups", "decode, too long a context", "--context \\S+", "--context 34"),
        new("--prefill needs the queries of the context too", "refusals-groups", "decode, a prefill without queries", "--context \\S+", "--context 2"),
        new("a smaller --dtype, a shorter context, or fewer layers or rows", "refusals-groups", "decode, a cache more than any memory", "--layers \\S+", "--layers 1"),
        new("Give --output a file of its own", "refusals-outputs", "output is the query", "--output \\S+", "--output $DIR/own.npy"),
        new("Give --lse a file of its own", "refusals-outputs", "lse is the value by another path", "--lse \\S+", "--lse $DIR/own.npy"),
        new("give another --out", "results-files", "bench writes results.jsonl and never replaces it", "--out \\S+", "--out $DIR/another"),
    ];

    public static TheoryData<int> Remedies => [.. Enumerable.Range(0, _remedies.Length)];

    [Theory, MemberData(nameof(Remedies))]
    public void Advice_leads_on(int number)
    {
        Remedy remedy = _remedies[number];
        FenceCase refused = new FenceFile(remedy.File).Case(remedy.Name);
        string refusal = Assert.Single(refused.Expected.Where(line => line.Contains(remedy.Advice, StringComparison.Ordinal)).Distinct());

        IReadOnlyList<string> seen = FenceRun.Observe(refused with { Steps = Changed(refused, remedy) });

        string told = $"{remedy.Advice}: {string.Join('\n', seen)}";
        Assert.False(seen.Contains(refusal), told);
        Assert.True(!remedy.LeadsToAResult || seen.Last(line => line.StartsWith("exit ", StringComparison.Ordinal)) == "exit 0", told);
    }

    [Fact]
    public void Every_advice_of_the_fence_that_names_a_flag_is_tried() => Assert.All(
        FenceCases.All.SelectMany(row => new FenceFile(row.File).Case(row.Name).Expected).Where(line => Advising().IsMatch(line)),
        line => Assert.Contains(_remedies, remedy => line.Contains(remedy.Advice, StringComparison.Ordinal)));

    // The last command of the case is the one that was refused.
    private static (string Word, string Text)[] Changed(FenceCase refused, Remedy remedy)
    {
        (string Word, string Text)[] steps = [.. refused.Steps.Where(step => step.Word != "sum" && step.Word != "header" && step.Word != "list")];
        int last = Array.FindLastIndex(steps, step => step.Word is "run" or "launch");
        string text = remedy.Gone.Length == 0 ? steps[last].Text : Regex.Replace(steps[last].Text, remedy.Gone, "");
        steps[last].Text = string.Join(" : ", text.Split(" : ").Select(program => $"{program} {remedy.Added}"));
        return steps;
    }

    [GeneratedRegex(@"^err\|treeattn: .*(?<!-)\b([Gg]ive|[Uu]se|[Cc]hoose|[Ss]tore|[Ll]eave|run with|let it through)\b[^.]*--[a-z]")]
    private static partial Regex Advising();

    /// <summary>A kind of advice, and how it is followed.</summary>
    /// <param name="Advice">What the refusal says.</param>
    /// <param name="File">The golden file.</param>
    /// <param name="Name">The case.</param>
    /// <param name="Gone">What of the command line goes.</param>
    /// <param name="Added">What comes.</param>
    /// <param name="LeadsToAResult">The case lacks nothing else.</param>
    private sealed record Remedy(string Advice, string File, string Name, string Gone, string Added, bool LeadsToAResult = true);
}
