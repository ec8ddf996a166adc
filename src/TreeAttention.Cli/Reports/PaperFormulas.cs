using System.Globalization;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>The communication volumes that the tree-attention paper gives (arXiv 2408.04093, section 5), to set beside what was counted.</summary>
internal static class PaperFormulas
{
    /// <summary>One comment line.</summary>
    public static string Line(AttentionShape shape, int ranks) => string.Create(
        CultureInfo.InvariantCulture,
        $"# paper: ring moves 2btd·p = {ExpectedTraffic.PaperRingElements(shape, ranks):F0} elements in all, "
        + $"tree 2(p-1)/p·(bd + 2bn) = {ExpectedTraffic.PaperTreeElements(shape, ranks):F1} elements a rank");
}
