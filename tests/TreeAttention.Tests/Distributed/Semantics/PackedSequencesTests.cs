using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Tensors;
using TreeAttention.Tests.Devices.Cpu;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Semantics;

/// <summary>Packed sequences against each sequence alone.</summary>
public sealed class PackedSequencesTests
{
    private static readonly AttentionShape _shape = new(1, 6, 10, 1, 1, 2, 2);

    public static TheoryData<string, int[]?, int[]?> BadBounds => new()
    {
        { "both", [0, 6], null },
        { "both", null, [0, 10] },
        { "begins with 1", [1, 6], [0, 10] },
        { "is empty", [], [0, 10] },
        { "must not descend", [0, 4, 3, 6], [0, 4, 5, 10] },
        { "ends with 7", [0, 7], [0, 10] },
        { "ends with 11", [0, 6], [0, 11] },
        { "names 2 sequences", [0, 3, 6], [0, 10] },
    };

    [Fact]
    public void A_packed_row_has_the_bits_of_its_sequence_alone()
    {
        for (int seed = 0; seed < 60; seed++)
        {
            var random = new Random(seed);
            PackedCall call = new(random);
            foreach ((int sequence, int i) in call.Rows)
            {
                for (int head = 0; head < call.Whole.Shape.QueryHeads; head++)
                {
                    double[] packed = new double[call.Whole.Shape.ValueDim];
                    double[] alone = new double[packed.Length];
                    AttentionProblem one = call.Alone(sequence);

                    var alonePart = new ReferenceCall(
                        one.Shape, one.Options, PackedCall.Part(call.Query, call.QueryBounds, sequence),
                        PackedCall.Part(call.Key, call.KeyBounds, sequence), PackedCall.Part(call.Value, call.KeyBounds, sequence));

                    ReferenceAttention.Row(
                        new ReferenceCall(call.Whole.Shape, call.Whole.Options, call.Query.View, call.Key.View, call.Value.View),
                        0, head, call.QueryBounds[sequence] + i, packed, out double lse);
                    ReferenceAttention.Row(alonePart, 0, head, i, alone, out double loneLse);

                    Assert.True(packed.SequenceEqual(alone) && lse.Equals(loneLse), $"seed {seed}, sequence {sequence}, query {i}, head {head}");
                }
            }

            call.Dispose();
        }
    }

    [Theory, InlineData(1), InlineData(2), InlineData(3)]
    public void Packed_trees_of_responses_are_causal_attention_over_each_prompt_and_response(int seed)
    {
        // As the published tests of tree masks for packed sequences: three prompts with two responses each.
        var random = new Random(seed);
        int[][] lengths = [.. Enumerable.Range(0, 3).Select(_ => new[] { random.Next(20, 70), random.Next(20, 70), random.Next(10, 211) })];
        int[] bounds = [0, .. lengths.Select((_, sequence) => lengths.Take(sequence + 1).Sum(nodes => nodes.Sum()))];
        AttentionShape shape = new(1, bounds[^1], bounds[^1], 4, 2, 32, 32);
        CpuCase packed = new CpuCase
        {
            Shape = shape,
            Options = new()
            {
                PackedQueries = bounds,
                PackedKeys = bounds,
                DfsStart = [.. lengths.SelectMany(nodes => nodes.SelectMany((length, node) => Enumerable.Repeat(node, length)))],
                DfsEnd = [.. lengths.SelectMany(nodes => nodes.SelectMany((length, node) => Enumerable.Repeat(node == 0 ? 2 : node, length)))],
            },
        }.Fill();
        using CpuDevice device = CpuWidths.Create(256, 2);

        PartialResult actual = packed.Run(device);

        for (int response = 1; response <= 2; response++)
        {
            int[] tokens = [.. lengths.SelectMany((nodes, sequence) => Enumerable
                .Range(bounds[sequence], nodes[0]).Concat(Enumerable.Range(bounds[sequence] + nodes.Take(response).Sum(), nodes[response])))];
            int[] alone = [0, .. lengths.Select((_, sequence) => lengths.Take(sequence + 1).Sum(nodes => nodes[0] + nodes[response]))];
            CpuCase duplicated = packed.OfTokens(tokens, new() { PackedQueries = alone, PackedKeys = alone, Causal = true });

            Assert.InRange(actual.OfQueries(tokens, shape.QueryLength).ErrorAgainst(duplicated.Run(device)), 0, 1e-5);
        }
    }

    [Fact]
    public void A_sequence_without_keys_gives_nothing_and_one_with_fewer_keys_than_queries_leaves_its_first_queries_empty()
    {
        var options = new AttentionOptions { PackedQueries = [0, 2, 6], PackedKeys = [0, 0, 10], Causal = true };
        var fewer = new AttentionOptions { PackedQueries = [0, 5, 6], PackedKeys = [0, 3, 10], Causal = true };

        Assert.True(new AttentionProblem(_shape, options).Mask.Visible(0, 1).IsEmpty);
        Assert.True(new AttentionProblem(_shape, fewer).Mask.Visible(0, 1).IsEmpty);
        Assert.Equal(new KeyInterval(0, 1), new AttentionProblem(_shape, fewer).Mask.Visible(0, 2));
        Assert.Equal(new KeyInterval(3, 10), new AttentionProblem(_shape, fewer).Mask.Visible(0, 5));
    }

    [Theory, MemberData(nameof(BadBounds))]
    public void Bounds_that_are_no_sequences_are_refused(string message, int[]? queries, int[]? keys)
    {
        var options = new AttentionOptions { PackedQueries = queries, PackedKeys = keys };

        ShapeMismatchException fault = Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(_shape, options));

        Assert.Contains(message, fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Packed_sequences_refuse_a_second_batch_row_and_lengths_beside_them()
    {
        var options = new AttentionOptions { PackedQueries = [0, 6], PackedKeys = [0, 10] };

        Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(_shape with { Batch = 2 }, options));
        Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(_shape, options with { KeyLengths = [10] }));
        Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(_shape, options with { QueryLengths = [6] }));
        Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(_shape, options with { KeyStarts = [0] }));
        Assert.Throws<ShapeMismatchException>(() => new AttentionProblem(_shape, options with { QueryDepths = [0, 1, 2, 3, 4, 5] }));
    }

    private sealed class PackedCall : IDisposable
    {
        private readonly AttentionOptions _options;

        public PackedCall(Random random)
        {
            int sequences = random.Next(1, 5);
            QueryBounds = Bounds(random, sequences, 5);
            KeyBounds = Bounds(random, sequences, 12);
            int heads = random.Next(1, 3);
            var shape = new AttentionShape(1, QueryBounds[^1], KeyBounds[^1], 2 * heads, heads, 4, 3);
            bool depthFirst = random.Next(3) == 0;
            _options = new AttentionOptions
            {
                Causal = random.Next(2) == 0,
                WindowLeft = random.Next(3) == 0 ? random.Next(5) : -1,
                WindowRight = random.Next(3) == 0 ? random.Next(5) : -1,
                Softcap = random.Next(3) == 0 ? 2 : 0,
                Sinks = random.Next(3) == 0 ? Floats(random, 2 * heads) : null,
                AlibiSlopes = random.Next(2) == 0 ? Floats(random, sequences * 2 * heads) : null,
                DfsStart = depthFirst ? Integers(random, shape.QueryLength) : null,
                DfsEnd = depthFirst ? Integers(random, shape.KeyLength) : null,
                TailMask = random.Next(3) == 0 ? [.. Integers(random, shape.QueryLength * 3).Select(number => number > 0)] : null,
                TailMaskLength = 3,
                TailBias = random.Next(3) == 0 ? Floats(random, shape.QueryLength * 2) : null,
                TailBiasLength = 2,
            };
            Whole = new AttentionProblem(shape, _options with { PackedQueries = QueryBounds, PackedKeys = KeyBounds });
            int seed = random.Next();
            Query = HostTensor.Normal("query", ElementType.Float32, [1, shape.QueryLength, shape.QueryHeads, 4], seed);
            Key = HostTensor.Normal("key", ElementType.Float32, [1, shape.KeyLength, heads, 4], seed + 1);
            Value = HostTensor.Normal("value", ElementType.Float32, [1, shape.KeyLength, heads, 3], seed + 2);
        }

        public int[] QueryBounds { get; }

        public int[] KeyBounds { get; }

        public AttentionProblem Whole { get; }

        public HostTensor Query { get; }

        public HostTensor Key { get; }

        public HostTensor Value { get; }

        public IEnumerable<(int Sequence, int I)> Rows =>
            from sequence in Enumerable.Range(0, QueryBounds.Length - 1)
            from i in Enumerable.Range(0, QueryBounds[sequence + 1] - QueryBounds[sequence])
            select (sequence, i);

        // The options of one sequence: its rows of every array.
        public AttentionProblem Alone(int sequence)
        {
            Range queries = QueryBounds[sequence]..QueryBounds[sequence + 1];
            Range keys = KeyBounds[sequence]..KeyBounds[sequence + 1];
            int heads = Whole.Shape.QueryHeads;
            (int queryCount, int keyCount) = (queries.End.Value - queries.Start.Value, keys.End.Value - keys.Start.Value);
            return new AttentionProblem(
                Whole.Shape with { QueryLength = queryCount, KeyLength = keyCount },
                _options with
                {
                    AlibiSlopes = _options.AlibiSlopes?[(sequence * heads)..((sequence + 1) * heads)],
                    DfsStart = _options.DfsStart?[queries],
                    DfsEnd = _options.DfsEnd?[keys],
                    TailMask = _options.TailMask?[(queries.Start.Value * 3)..(queries.End.Value * 3)],
                    TailBias = _options.TailBias?[(queries.Start.Value * 2)..(queries.End.Value * 2)],
                });
        }

        public static TensorView Part(HostTensor tensor, int[] bounds, int sequence)
        {
            TensorView view = tensor.View;
            long[] shape = [1, bounds[sequence + 1] - bounds[sequence], view.Shape[2], view.Shape[3]];
            nint first = view.Address + ((nint)view.OffsetOf([0, bounds[sequence]]) * sizeof(float));
            return new TensorView(view.Name, first, view.Type, shape, view.Strides);
        }

        public void Dispose()
        {
            Query.Dispose();
            Key.Dispose();
            Value.Dispose();
        }

        private static int[] Bounds(Random random, int sequences, int most)
        {
            int[] bounds = new int[sequences + 1];
            for (int i = 0; i < sequences; i++)
            {
                bounds[i + 1] = bounds[i] + random.Next(most + 1);
            }

            return bounds;
        }

        private static float[] Floats(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => random.NextSingle())];

        private static int[] Integers(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => random.Next(3))];
    }
}
