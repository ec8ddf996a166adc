namespace TreeAttention.Distributed;

/// <summary>A token of a prompt.</summary>
/// <param name="Row">The cache's row that it enters.</param>
/// <param name="Index">Its place in the prompt, from 0 on.</param>
public readonly record struct PromptToken(int Row, int Index);
