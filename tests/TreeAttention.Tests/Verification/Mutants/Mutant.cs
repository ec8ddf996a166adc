using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Text;

namespace TreeAttention.Tests.Verification.Mutants;

/// <summary>One planted defect: an expression of the runtime's source, and the wrong one that stands in its place.</summary>
/// <param name="Name">What is wrong, in a few words.</param>
/// <param name="File">The source file, relative to the runtime's project.</param>
/// <param name="From">The expression; it must occur in the file exactly once.</param>
/// <param name="To">What is computed instead.</param>
internal sealed record Mutant(string Name, string File, string From, string To)
{
    /// <summary>The source of the switch that says which mutant is at work; 0 is none.</summary>
    public const string Switch = """
        namespace TreeAttention.Distributed;

        internal static class Planted
        {
            internal static int Mutant;

            internal static bool Is(int mutant) => Mutant == mutant;
        }
        """;

    /// <summary>A file's text with mutants planted, each at work when the switch has its number.</summary>
    /// <param name="file">The file, as in <see cref="File"/>.</param>
    /// <param name="text">Its text.</param>
    /// <param name="mutants">All mutants, of this file and others; the first has number 1.</param>
    /// <exception cref="InvalidOperationException">A mutant's expression does not occur exactly once, or two overlap.</exception>
    public static string Plant(string file, string text, IReadOnlyList<Mutant> mutants)
    {
        (int Place, string From, string Planted)[] spots =
        [
            .. mutants.Index().Where(mutant => mutant.Item.File == file).GroupBy(mutant => mutant.Item.From)
                .Select(spot => (PlaceOf(text, spot.First().Item), spot.Key, Choice(spot))).OrderBy(spot => spot.Item1),
        ];
        var planted = new StringBuilder();
        int end = 0;
        foreach ((int place, string from, string choice) in spots)
        {
            if (place < end)
            {
                throw new InvalidOperationException($"Two mutants overlap in {file} at '{from}': give them the same expression.");
            }

            planted.Append(text, end, place - end).Append(choice);
            end = place + from.Length;
        }

        return planted.Append(text, end, text.Length - end).ToString();
    }

    /// <inheritdoc/>
    public override string ToString() => Name;

    private static int PlaceOf(string text, Mutant mutant)
    {
        int place = text.IndexOf(mutant.From, StringComparison.Ordinal);
        if (place < 0 || place != text.LastIndexOf(mutant.From, StringComparison.Ordinal))
        {
            throw new InvalidOperationException(
                $"Mutant '{mutant.Name}': its expression must occur exactly once in {mutant.File}; adapt the mutant to the source. "
                + $"It is: {mutant.From}");
        }

        return place;
    }

    // (Planted.Is(3) ? (wrong) : Planted.Is(7) ? (also wrong) : (right))
    private static string Choice(IGrouping<string, (int Index, Mutant Item)> spot)
    {
        IEnumerable<string> wrong = spot.Select(mutant => string.Create(
            CultureInfo.InvariantCulture, $"global::TreeAttention.Distributed.Planted.Is({mutant.Index + 1}) ? ({mutant.Item.To}) : "));
        return $"({string.Concat(wrong)}({spot.Key}))";
    }
}
