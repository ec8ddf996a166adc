using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>The work that a call cannot do without, whatever the algorithm: what rates and ratios are counted with.</summary>
internal static class UsefulWork
{
    /// <summary>Bytes of all keys and values, each read once.</summary>
    public static double BytesRead(AttentionShape shape, ElementType type, bool valuesInKeys) =>
        (double)shape.Batch * shape.KeyLength * shape.KvHeads * (shape.HeadDim + (valuesInKeys ? 0 : shape.ValueDim)) * type.SizeInBytes();

    /// <summary>Multiplications and additions of q·k and p·v over the pairs that the masks' intervals keep.</summary>
    public static double Operations(AttentionProblem problem)
    {
        double pairs = 0;
        for (int batch = 0; batch < problem.Shape.Batch; batch++)
        {
            for (int i = 0; i < problem.Shape.QueryLength; i++)
            {
                KeyInterval visible = problem.Mask.Visible(batch, i);
                pairs += visible.IsEmpty ? 0 : visible.End - visible.First;
            }
        }

        return 2.0 * (problem.Shape.HeadDim + problem.Shape.ValueDim) * problem.Shape.QueryHeads * pairs;
    }
}
