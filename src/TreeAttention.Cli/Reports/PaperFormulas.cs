using System.Globalization;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>The communication volumes that the tree-attention paper gives (arXiv 2408.04093, section 5), to set beside what was counted.</summary>
internal static class PaperFormulas
{
    /// <summary>One comment line.</summary>
    public static string Line(AttentionShape shape, int ranks)
    {
        int hidden = shape.QueryHeads * shape.ValueDim;
        double ring = ExpectedTraffic.PaperRingElements(
            shape.Batch, (double)shape.KeyLength / ranks, shape.KvHeads * shape.HeadDim, ranks);
        double tree = ExpectedTraffic.PaperTreeElements(shape.Batch, hidden, shape.QueryHeads, ranks);
        return string.Create(
            CultureInfo.InvariantCulture,
            $"# the paper's formulas: V_ring = 2btd·p = {ring:F0} elements, V_tree = 2(p-1)/p·(bd + 2bn) = {tree:F1} elements");
    }
}
