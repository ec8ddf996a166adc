namespace TreeAttention.Distributed;

/// <summary>One row as float64 has it, how large it is, and how far plain arithmetic in the storage type is off.</summary>
/// <param name="Row">Which row.</param>
/// <param name="Expected">[value_dim] the output.</param>
/// <param name="ExpectedLse">The log-sum-exp.</param>
/// <param name="Largest">Largest magnitude of the output.</param>
/// <param name="Magnitude">Largest weighted mean of |value|.</param>
/// <param name="NaiveOutputError">Largest output error of the naive computation; +∞ where that overflows.</param>
/// <param name="NaiveLseError">The same of the log-sum-exp.</param>
internal readonly record struct RowMeasure(
    AttentionRow Row, double[] Expected, double ExpectedLse, double Largest, double Magnitude,
    double NaiveOutputError, double NaiveLseError);
