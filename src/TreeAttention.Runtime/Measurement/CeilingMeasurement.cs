using System.Linq;

namespace TreeAttention.Runtime;

/// <summary>The machine's ceilings, round after round, beside which steps were timed in the same rounds.</summary>
/// <param name="ReadBytesPerSecond">Bandwidth with which all ranks together read memory, in each round.</param>
/// <param name="CopyBytesPerSecond">Bandwidth with which they copy inside their devices, reads and writes counted; empty where a device has no copy of its own.</param>
/// <param name="OperationsPerSecond">Multiplications and additions of all ranks together, in each round.</param>
public sealed record CeilingMeasurement(double[] ReadBytesPerSecond, double[] CopyBytesPerSecond, double[] OperationsPerSecond)
{
    /// <summary>Median over the rounds of <paramref name="bytes"/> per run as a fraction of the read bandwidth.</summary>
    public double ReadRatio(StepMeasurement cost, double bytes) => Ratio(cost, bytes, ReadBytesPerSecond);

    /// <summary>Median over the rounds of <paramref name="bytes"/> per run as a fraction of the copy bandwidth; null where there is none.</summary>
    public double? CopyRatio(StepMeasurement cost, double bytes) => CopyBytesPerSecond.Length == 0 ? null : Ratio(cost, bytes, CopyBytesPerSecond);

    /// <summary>Median over the rounds of <paramref name="operations"/> per run as a fraction of the FMA rate.</summary>
    public double FmaRatio(StepMeasurement cost, double operations) => Ratio(cost, operations, OperationsPerSecond);

    private static double Ratio(StepMeasurement cost, double work, double[] ceiling) =>
        RunRecorder.Quantile(cost.RunsUs.Zip(ceiling, (microseconds, rate) => work / (microseconds * 1e-6) / rate), 0.5);
}
