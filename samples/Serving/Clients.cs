using System;
using System.Collections.Generic;
using System.Linq;

/// <summary>What a client asks: a prompt, perhaps behind a shared prefix, and how many tokens of an answer.</summary>
internal sealed record Request(int Number, int? Prefix, int[] Own, int Length, int CancelledAfter)
{
    /// <summary>The whole prompt.</summary>
    public int[] Prompt => Prefix is { } prefix ? [.. Prompts.Prefixes[prefix], .. Own] : Own;

    /// <summary>The answer so far.</summary>
    public List<Token> Tokens { get; } = [];

    /// <summary>The client has gone away.</summary>
    public bool IsCancelled => Tokens.Count >= CancelledAfter;
}

/// <summary>Clients that come at random times with random wishes; one in ten goes away before it has its answer.</summary>
internal sealed class Clients(int seed)
{
    private const double ArrivalsPerSecond = 40;

    private readonly Random _random = new(seed);
    private double _next;
    private int _count;

    /// <summary>Those who have come since the last call.</summary>
    public IEnumerable<Request> ArrivedBy(double seconds)
    {
        for (; _next <= seconds; _next -= Math.Log(1 - _random.NextDouble()) / ArrivalsPerSecond)
        {
            int prefix = _random.Next(Prompts.Prefixes.Count + 1);
            int length = _random.Next(1, Prompts.LongestAnswer + 1);
            yield return new Request(
                _count++, prefix < Prompts.Prefixes.Count ? prefix : null, Prompts.Random(_random, _random.Next(1, Prompts.LongestOwn + 1)), length,
                _random.Next(10) == 0 ? _random.Next(length) : int.MaxValue);
        }
    }
}

/// <summary>Prompts of random tokens.</summary>
internal static class Prompts
{
    public const int LongestOwn = 500, LongestAnswer = 120, LongestRequest = 700 + LongestOwn + LongestAnswer;

    /// <summary>Prefixes that many requests begin with, as the instructions of an assistant are; neither ends with a page.</summary>
    public static readonly IReadOnlyList<int[]> Prefixes = [Random(new Random(1), 700), Random(new Random(2), 300)];

    public static int[] Random(Random random, int length) => [.. Enumerable.Range(0, length).Select(_ => random.Next(Model.Vocabulary))];
}
