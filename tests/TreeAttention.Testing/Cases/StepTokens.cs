using System;

namespace TreeAttention.Testing.Cases;

/// <summary>Tokens that a model would give a cache, one step after the other: reproducible, in arrays that stay.</summary>
internal sealed class StepTokens(CacheOptions cache, DecodeOptions decode, int seed)
{
    private readonly Random _random = new(seed);

    internal float[] Query { get; } = new float[cache.Rows * decode.QueryLength * decode.QueryHeads * cache.HeadDim];

    internal float[] Key { get; } = new float[cache.Rows * decode.QueryLength * cache.KvHeads * cache.HeadDim];

    internal float[] Value { get; } = new float[cache.ValuesInKeys ? 0 : cache.Rows * decode.QueryLength * cache.KvHeads * cache.ValueDim];

    internal float[] Output { get; } = new float[cache.Rows * decode.QueryLength * decode.QueryHeads * cache.ValueDim];

    internal float[] Lse { get; } = new float[cache.Rows * decode.QueryLength * decode.QueryHeads];

    /// <summary>The next tokens, run on a layer.</summary>
    internal void Step(DecodeStep step, int layer)
    {
        Next();
        step.Run(layer, Query, Key, Value, Output, Lse);
    }

    /// <summary>The next tokens.</summary>
    internal void Next()
    {
        Fill(Query);
        Fill(Key);
        Fill(Value);
    }

    /// <summary>Appends a prompt to every layer of each row: so many tokens.</summary>
    internal void Prefill(ShardedKvCache into, params int[] counts)
    {
        for (int row = 0; row < counts.Length; row++)
        {
            for (int layer = 0; layer < into.Options.Layers && counts[row] > 0; layer++)
            {
                (float[] key, float[] value) = Prompt(counts[row]);
                into.Append(layer, [row], key, value);
            }
        }
    }

    private (float[] Key, float[] Value) Prompt(int count)
    {
        float[] key = new float[count * cache.KvHeads * cache.HeadDim];
        float[] value = new float[cache.ValuesInKeys ? 0 : count * cache.KvHeads * cache.ValueDim];
        Fill(key);
        Fill(value);
        return (key, value);
    }

    private void Fill(float[] numbers)
    {
        for (int i = 0; i < numbers.Length; i++)
        {
            numbers[i] = (float)((_random.NextDouble() - 0.5) * 3);
        }
    }
}
