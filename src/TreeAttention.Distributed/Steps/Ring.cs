namespace TreeAttention.Distributed.Steps;

/// <summary>A rank's place among the ranks as a ring: what travels goes to the next rank, and comes from the previous one.</summary>
/// <param name="Rank">This rank.</param>
/// <param name="Size">Number of ranks.</param>
internal readonly record struct Ring(int Rank, int Size)
{
    /// <summary>Who is sent to.</summary>
    internal int Next => (Rank + 1) % Size;

    /// <summary>Who is received from.</summary>
    internal int Previous => Behind(1);

    /// <summary>Whose shard is here after so many hops, 0 to size - 1.</summary>
    internal int Behind(int hops) => (Rank - hops + Size) % Size;
}
