using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Whether fp32 holds the weights of a row's keys in spite of its biases.</summary>
internal static class NearKeys
{
    // Added to scores of ordinary size, a bias of this size costs fp32 no digit that counts.
    private const double MostBias = 64;

    /// <summary>Some key that the row sees has a bias that fp32 adds exactly enough; keys further off then weigh nothing, or as little.</summary>
    /// <param name="mask">The rules.</param>
    /// <param name="batch">The batch row.</param>
    /// <param name="head">The query head.</param>
    /// <param name="i">Index of the query.</param>
    /// <param name="visible">Positions that the query may see; a query that sees none needs no key.</param>
    internal static bool Exist(AttentionMask mask, int batch, int head, int i, KeyInterval visible)
    {
        if (visible.IsEmpty)
        {
            return true;
        }

        QueryPlace place = mask.PlaceOf(batch, i);
        float slope = mask.AlibiSlope(place, head);
        if (slope <= 0)
        {
            return true;
        }

        // From the nearest key of the interval outwards, until ALiBi alone is too much.
        long position = place.Position;
        int below = (int)Math.Clamp(position, visible.First, visible.End - 1);
        for (int above = below + 1; below >= visible.First || above < visible.End;)
        {
            bool isBelow = above >= visible.End || (below >= visible.First && position - below <= above - position);
            int key = isBelow ? below-- : above++;
            if (!(slope * Math.Abs(position - key) <= MostBias))
            {
                return false;
            }

            bool isSeen = !mask.HasKeyRules || mask.KeepsInside(batch, i, key);
            if (isSeen && mask.Bias(batch, head, i, key) >= -MostBias)
            {
                return true;
            }
        }

        return true;
    }
}
