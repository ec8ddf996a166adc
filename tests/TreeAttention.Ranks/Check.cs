using System;
using System.Collections.Generic;

namespace TreeAttention.Ranks;

/// <summary>What a check on a rank found wrong.</summary>
internal sealed class CheckFailedException(string message) : Exception(message);

/// <summary>The comparisons of the checks that run inside the ranks.</summary>
internal static class Check
{
    internal static void That(bool holds, string otherwise)
    {
        if (!holds)
        {
            throw new CheckFailedException(otherwise);
        }
    }

    internal static void Equal<T>(T expected, T actual, string what) =>
        That(EqualityComparer<T>.Default.Equals(expected, actual), $"{what} is {actual}, not {expected}");

    internal static void Same<T>(ReadOnlySpan<T> expected, ReadOnlySpan<T> actual, string what)
        where T : unmanaged, IEquatable<T>
    {
        Equal(expected.Length, actual.Length, $"length of {what}");
        for (int i = 0; i < expected.Length; i++)
        {
            if (!expected[i].Equals(actual[i]))
            {
                throw new CheckFailedException($"{what}: element {i} is {actual[i]}, not {expected[i]}");
            }
        }
    }

    internal static void Throws<T>(Action action, string what)
        where T : Exception
    {
        try
        {
            action();
        }
        catch (T)
        {
            return;
        }

        throw new CheckFailedException($"{what} did not end in {typeof(T).Name}");
    }
}
