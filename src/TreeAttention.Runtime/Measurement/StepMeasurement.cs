namespace TreeAttention.Runtime;

/// <summary>What the counted runs of one step cost. Times are microseconds; each run counts as its slowest rank took.</summary>
/// <param name="MedianUs">Median over the runs.</param>
/// <param name="MinUs">Fastest run.</param>
/// <param name="P95Us">95th percentile of the runs.</param>
/// <param name="ComputeUs">Median over the runs of the slowest rank's time on its device.</param>
/// <param name="CommunicationUs">Median over the runs of the longest time that a rank spent in its transport.</param>
/// <param name="BytesSent">Payload that the busiest rank handed to the transport in one step.</param>
/// <param name="ControlBytes">Bytes of the control plane so far, of the busiest rank.</param>
/// <param name="Messages">Point-to-point messages of the busiest rank in one step.</param>
/// <param name="Collectives">Collectives in one step.</param>
/// <param name="PeakBytes">Most device memory that a rank held: its shard, its queries, and what the step needs.</param>
/// <param name="RunsUs">Every counted run, in order.</param>
public sealed record StepMeasurement(
    double MedianUs, double MinUs, double P95Us, double ComputeUs, double CommunicationUs,
    long BytesSent, long ControlBytes, long Messages, long Collectives, long PeakBytes,
    double[] RunsUs);
