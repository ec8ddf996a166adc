namespace TreeAttention.Devices;

/// <summary>Work in numbered units that may run in any order on any worker.</summary>
internal interface IWork
{
    /// <summary>Does one unit.</summary>
    /// <param name="unit">0 to units - 1.</param>
    /// <param name="worker">Which worker runs it, for its own scratch memory: 0 is the caller.</param>
    void Run(int unit, int worker);
}
