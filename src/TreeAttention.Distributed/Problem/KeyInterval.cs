namespace TreeAttention.Distributed;

/// <summary>An interval of key positions: <c>First &lt;= j &lt; End</c>; empty when End &lt;= First.</summary>
public readonly record struct KeyInterval(int First, int End)
{
    /// <summary>No key lies in it.</summary>
    public bool IsEmpty => End <= First;
}
