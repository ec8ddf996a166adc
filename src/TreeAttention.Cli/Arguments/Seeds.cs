namespace TreeAttention.Cli.Arguments;

/// <summary>What made-up numbers and sampled rows begin from.</summary>
internal static class Seeds
{
    /// <summary>Where the user names none: every run has the same numbers.</summary>
    internal const int Default = 20261121;
}
