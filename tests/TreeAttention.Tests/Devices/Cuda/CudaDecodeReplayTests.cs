using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Decode steps of a CUDA device over a cache that grows: launched whole, with the bits of steps that are done directly.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaDecodeReplayTests
{
    private const int Rows = 2;
    private const int Layers = 2;
    private const int KvHeads = 2;
    private const int Heads = 6;
    private const int Dim = 16;

    private static readonly KeyValueScales _scales = new([0.01f, 0.02f], [0.03f, 0.01f]);

    public static TheoryData<string> Cases =>
        ["plain", "rotary and window", "many queries", "f8", "mla", "lanes", "numerators", "token tree", "replicated"];

    [Theory, MemberData(nameof(Cases))]
    public void Replayed_steps_have_the_bits_of_direct_ones_while_rows_grow_fork_shrink_and_move(string name)
    {
        (CacheOptions cache, DecodeOptions decode) = CaseOf(name);

        List<float[]> replayed = Generate(cache, decode, isFresh: false);
        List<float[]> direct = Generate(cache, decode, isFresh: true);
        List<float[]> expected = OnCpu(cache, decode);

        float bound = cache.Type == ElementType.Float32 ? 2e-5f : 4e-2f;
        for (int i = 0; i < expected.Count; i++)
        {
            Assert.Equal(direct[i].Select(BitConverter.SingleToInt32Bits), replayed[i].Select(BitConverter.SingleToInt32Bits));
            Assert.All(expected[i].Zip(replayed[i]), pair => Assert.Equal(pair.First, pair.Second, bound * MathF.Max(1, MathF.Abs(pair.First))));
        }

        Assert.True(expected.Count > 60 && expected[0].Any(x => x != 0));
    }

    [Fact]
    public void In_the_steady_state_the_host_launches_one_graph_a_step_waits_once_and_allocates_nothing()
    {
        (CacheOptions options, DecodeOptions decode) = CaseOf("rotary and window");
        OnCuda((device, context) =>
        {
            using var cache = new ShardedKvCache(context, options);
            using var step = new DecodeStep(context, cache, decode);
            var tokens = new StepTokens(options, decode, 3);
            tokens.Prefill(cache, [505, 70]);
            for (int i = 0; i < 3 * Layers; i++)
            {
                tokens.Step(step, i % Layers);
            }

            (long captures, long waits) = (device.Captures, device.Waits);
            for (int i = 0; i < 30 * Layers; i++)
            {
                tokens.Step(step, i % Layers);
            }

            // The first page ended on the way: there each layer was done directly once and captured once more.
            Assert.Equal(538, cache.LengthOf(0));
            Assert.Equal((captures + Layers, waits + (30 * Layers)), (device.Captures, device.Waits));
            (long launches, long reserved) = (device.Launches, device.ReservedBytes);
            long managed = GC.GetAllocatedBytesForCurrentThread();
            for (int i = 0; i < 100 * Layers; i++)
            {
                tokens.Step(step, i % Layers);
            }

            long allocated = GC.GetAllocatedBytesForCurrentThread() - managed;
            Assert.Equal((launches, reserved, captures + Layers), (device.Launches, device.ReservedBytes, device.Captures));
            Assert.Equal((waits + (130 * Layers), 0), (device.Waits, allocated));
        });
    }

    [Fact]
    public void Steps_over_the_callers_tensors_are_replayed_too_and_none_overtakes_what_is_still_enqueued()
    {
        const int Steps = 12;
        (CacheOptions options, DecodeOptions decode) = CaseOf("rotary and window");
        List<float[]> expected = [], seen = [];
        OnCuda((device, context) =>
        {
            using ShardedKvCache cache = new(context, options), other = new(context, options);
            using DecodeStep step = new(context, cache, decode), onHost = new(context, other, decode);
            StepTokens tokens = new(options, decode, 9), same = new(options, decode, 9);
            tokens.Prefill(cache, 300, 40);
            same.Prefill(other, 300, 40);
            using var caller = new CallerStream(device);
            DeviceTensor[] outputs = [.. Enumerable.Range(0, Steps).Select(_ => caller.Room(tokens.Output.Length, ElementType.Float32))];
            DeviceTensor[] sums = [.. Enumerable.Range(0, Steps).Select(_ => caller.Room(tokens.Lse.Length, ElementType.Float32))];
            DeviceTensor[][] given = [.. Enumerable.Range(0, Steps).Select(_ =>
            {
                tokens.Next();
                return (DeviceTensor[])[.. ((float[][])[tokens.Query, tokens.Key, tokens.Value]).Select(one => caller.Arrives(one, ElementType.Float32))];
            })];
            (long launches, long waits) = (0, device.Waits);
            for (int i = 0; i < Steps; i++)
            {
                launches = i == 2 * Layers ? device.Launches : launches;
                step.Run(i % Layers, given[i][0], given[i][1], given[i][2], outputs[i], sums[i], caller.Handle);
            }

            // What is launched one by one makes the caller's result: one kernel a step.
            Assert.Equal((launches + Steps - (2 * Layers), waits), (device.Launches, device.Waits));
            seen.AddRange(outputs.Zip(sums).Select(pair => (float[])[.. caller.Read(pair.First), .. caller.Read(pair.Second)]));
            for (int i = 0; i < Steps; i++)
            {
                same.Step(onHost, i % Layers);
                expected.Add([.. same.Output, .. same.Lse]);
            }
        });

        Assert.Equal(Steps, seen.Count);
        Assert.All(expected.Zip(seen), step => Assert.All(
            step.First.Zip(step.Second), pair => Assert.Equal(pair.First, pair.Second, 1e-6f * MathF.Max(1, MathF.Abs(pair.First)))));
    }

    [Fact]
    public void Replays_that_do_not_follow_the_lengths_of_rows_are_wrong()
    {
        // The comparison above can fail: what a graph reads of a growing cache is what lies in device memory, and nothing else.
        (CacheOptions options, DecodeOptions decode) = CaseOf("plain");
        List<float[]> Steps(Func<CudaDevice, IDevice> choose)
        {
            List<float[]> outputs = [];
            OnCuda((device, context) =>
            {
                using var cache = new ShardedKvCache(context, options);
                using var step = new DecodeStep(context with { Device = choose(device) }, cache, decode);
                var tokens = new StepTokens(options, decode, 11);
                tokens.Prefill(cache, [40, 30]);
                for (int i = 0; i < 6 * Layers; i++)
                {
                    tokens.Step(step, i % Layers);
                    outputs.Add([.. tokens.Output]);
                }
            });
            return outputs;
        }

        List<float[]> expected = Steps(device => device);
        List<float[]> stale = Steps(device => new ForgetfulDevice(device, captures: Layers));

        // The first step of a layer is direct, the second is captured; the lengths of both are those of the first layer's.
        Assert.All(Enumerable.Range(0, 2 * Layers), i => Assert.Equal(expected[i], stale[i]));
        Assert.All(Enumerable.Range(2 * Layers, 4 * Layers), i => Assert.NotEqual(expected[i], stale[i]));
    }

    [Fact]
    public void Reproducible_steps_have_the_same_bits_where_scratch_holds_three_states()
    {
        (CacheOptions options, DecodeOptions decode) = CaseOf("lanes");
        List<float[]> expected = Generate(options, decode, isFresh: false);
        List<float[]> seen = [];

        OnCuda((_, context) => Generate(context, options, decode, isFresh: false, seen), scratchBytes: 3 * Rows * Heads * (Dim + 2) * sizeof(float));

        Assert.Equal(expected.SelectMany(x => x).Select(BitConverter.SingleToInt32Bits), seen.SelectMany(x => x).Select(BitConverter.SingleToInt32Bits));
    }

    private static List<float[]> Generate(CacheOptions options, DecodeOptions decode, bool isFresh)
    {
        List<float[]> outputs = [];
        OnCuda((_, context) => Generate(context, options, decode, isFresh, outputs));
        return outputs;
    }

    private static List<float[]> OnCpu(CacheOptions options, DecodeOptions decode)
    {
        List<float[]> outputs = [];
        using var device = new CpuDevice(1);
        using var group = InProcessGroup.Create(1);
        Generate(new RankContext(group.Transports[0], device, group.Controls[0]), options, decode, isFresh: false, outputs);
        return outputs;
    }

    // Rows of different lengths; pages begin; the second row becomes a fork of the first, is cut, emptied, and filled again.
    private static void Generate(RankContext context, CacheOptions options, DecodeOptions decode, bool isFresh, List<float[]> outputs)
    {
        using var cache = new ShardedKvCache(context, options);
        var tokens = new StepTokens(options, decode, 7);
        tokens.Prefill(cache, [500, 30]);
        DecodeStep step = new(context, cache, decode);
        void Run(int steps)
        {
            for (int i = 0; i < steps; i++)
            {
                for (int layer = 0; layer < options.Layers; layer++)
                {
                    if (isFresh)
                    {
                        step.Dispose();
                        step = new DecodeStep(context, cache, decode);
                    }

                    tokens.Step(step, layer);
                    outputs.Add([.. tokens.Output, .. tokens.Lse]);
                }
            }
        }

        Run(12);
        cache.Fork(0, 1, 501);
        Run(6);
        cache.Truncate(0, 509);
        cache.Keep(1, 502, [1, 2]);
        Run(6);
        cache.Release(1);
        tokens.Prefill(cache, [0, 100]);
        Run(3);
        tokens.Prefill(cache, [530, 0]);
        Run(4);
        step.Dispose();
    }

    private static void OnCuda(Action<CudaDevice, RankContext> body, long scratchBytes = 256 << 20)
    {
        using var group = InProcessGroup.Create(1);
        using var device = new CudaDevice(EmulatedCuda.Platform, 0, scratchBytes);
        using var transport = new DeviceTransport(group.Transports[0], device);
        body(device, new RankContext(transport, device, group.Controls[0]));
    }

    private static (CacheOptions Cache, DecodeOptions Decode) CaseOf(string name)
    {
        var cache = new CacheOptions
        {
            Layers = Layers,
            Rows = Rows,
            KvHeads = KvHeads,
            HeadDim = Dim,
            ValueDim = Dim,
            MaxLength = 2000,
            Type = ElementType.Float32,
        };
        var decode = new DecodeOptions { QueryHeads = Heads, Attention = new AttentionOptions { Causal = true } };
        var tree = TokenTree.FromParents([-1, 0, 0, 2]);
        return name switch
        {
            "plain" => (cache, decode),
            "rotary and window" => (
                cache with { Type = ElementType.BFloat16, Rotary = new RotaryOptions(12) },
                decode with { Attention = new AttentionOptions { WindowLeft = 300, WindowRight = 0, Softcap = 20, LseBase = LogarithmBase.Two } }),
            "many queries" => (cache with { Type = ElementType.Float16 }, decode with { QueryLength = 3 }),
            "f8" => (cache with { Type = ElementType.Float8E4M3, Scales = _scales }, decode),
            "mla" => (cache with { ValuesInKeys = true, HeadDim = 24 }, decode),
            "lanes" => (cache, decode with { Plan = new(AttentionAlgorithm.Tree, ReductionKind.Lanes, QueryPlacement.Replicated) }),
            "numerators" => (cache, decode with { Plan = new(AttentionAlgorithm.Tree, ReductionKind.TwoAllReduce, QueryPlacement.Replicated) }),
            "token tree" => (cache with { Rotary = new RotaryOptions(8) }, decode with
            {
                QueryLength = tree.Count,
                Attention = TokenTreeMask.Apply(new AttentionOptions { LocalChunk = 100 }, Rows, tree.Count, [tree]),
            }),
            "replicated" => (
                cache with { Replicated = true },
                decode with { Plan = new(AttentionAlgorithm.Single, ReductionKind.Auto, QueryPlacement.Replicated) }),
            _ => throw new ArgumentOutOfRangeException(nameof(name), name, null),
        };
    }
}
