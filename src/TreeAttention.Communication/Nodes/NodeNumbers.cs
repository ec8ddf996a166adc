using System.Collections.Generic;

namespace TreeAttention.Communication.Nodes;

/// <summary>How the nodes of a group are numbered, whatever they are called: by first appearance.</summary>
internal static class NodeNumbers
{
    /// <summary>The node of each rank; ranks of equal keys share one.</summary>
    /// <param name="keys">[size] what the node of each rank is called.</param>
    /// <returns>[size] 0, then the smallest number that is new.</returns>
    internal static int[] Of<T>(IEnumerable<T> keys)
        where T : notnull
    {
        var seen = new Dictionary<T, int>();
        var numbers = new List<int>();
        foreach (T key in keys)
        {
            seen.TryAdd(key, seen.Count);
            numbers.Add(seen[key]);
        }

        return [.. numbers];
    }
}
