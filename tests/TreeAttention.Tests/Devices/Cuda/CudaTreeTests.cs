using System;
using System.Linq;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Token trees on the emulated GPU: what stays of them in the cache, whether the nodes came from the host or from device memory.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaTreeTests
{
    private const int Heads = 2;
    private const int Dim = 16;

    // The tree lies over the border of two pages, of which each rank owns one.
    private const int Before = 509;

    private static readonly TokenTree _tree = TokenTree.FromParents([-1, 0, 0, 1, 2, 4]);
    private static readonly int[] _path = [0, 2, 4, 5];

    public static TheoryData<bool, int> Trees => new() { { false, 4 }, { true, 4 }, { false, 0 }, { true, 0 } };

    [Theory, MemberData(nameof(Trees))]
    public void What_is_kept_of_a_tree_is_as_if_it_alone_had_been_appended(bool fromDevice, int kept)
    {
        int[] path = _path[..kept];

        float[][] decided = RunOn(2, (context, device, cache) =>
        {
            using var step = new SpeculativeStep(context, cache, Options(0), _tree);
            float[] nodes = [.. Enumerable.Range(0, _tree.Count).SelectMany(node => Numbers(7, node, Dim))];
            float[] queries = [.. Enumerable.Range(0, _tree.Count).SelectMany(node => Numbers(8, node, Heads * Dim))];
            if (fromDevice)
            {
                using var caller = new CallerStream(device);
                step.Run(
                    0, caller.Arrives(queries, ElementType.Float32), caller.Arrives(nodes, ElementType.Float32),
                    caller.Arrives(nodes, ElementType.Float32), caller.Room(queries.Length, ElementType.Float32),
                    caller.Room(_tree.Count * Heads, ElementType.Float32), caller.Handle);
                device.Synchronize();
            }
            else
            {
                step.Run(0, queries, nodes, nodes, new float[queries.Length], new float[_tree.Count * Heads]);
            }

            Assert.Equal(Before + _tree.Count, cache.LengthOf(0));
            if (kept == 0)
            {
                step.Reject(0);
            }
            else
            {
                step.Commit(0, path);
            }

            return DecodeNext(context, cache);
        });
        float[][] alone = RunOn(2, (context, _, cache) =>
        {
            float[] nodes = [.. path.SelectMany(node => Numbers(7, node, Dim))];
            cache.Append(0, nodes, nodes);
            return DecodeNext(context, cache);
        });

        Assert.All(decided.Zip(alone), pair => Assert.Equal(pair.Second, pair.First));
        Assert.Contains(decided[0], number => number != 0);
    }

    private static float[] DecodeNext(RankContext context, ShardedKvCache cache)
    {
        using var step = new DecodeStep(context, cache, Options(1));
        float[] output = new float[Heads * Dim];
        step.Run(0, Numbers(1, 0, Heads * Dim), Numbers(2, 0, Dim), Numbers(3, 0, Dim), output, new float[Heads]);
        return output;
    }

    private static DecodeOptions Options(int queries) => new()
    {
        QueryLength = queries,
        QueryHeads = Heads,
        Attention = new AttentionOptions { Causal = true },
    };

    private static float[][] RunOn(int ranks, Func<RankContext, CudaDevice, ShardedKvCache, float[]> body)
    {
        _ = EmulatedCuda.Platform;
        float[][] results = new float[ranks][];
        using var group = InProcessGroup.Create(ranks);
        group.Run(rank =>
        {
            using CudaDevice device = EmulatedCuda.CreateDevice();
            using var transport = new DeviceTransport(group.Transports[rank], device);
            var context = new RankContext(transport, device, group.Controls[rank]);
            using var cache = new ShardedKvCache(context, new CacheOptions
            {
                KvHeads = 1,
                HeadDim = Dim,
                ValueDim = Dim,
                MaxLength = 530,
                Rotary = new RotaryOptions(8),
            });
            float[] prompt = Numbers(9, 0, Before * Dim);
            cache.Append(0, prompt, prompt);
            results[rank] = body(context, device, cache);
        });
        return results;
    }

    private static float[] Numbers(int which, int index, int count)
    {
        var random = new Random((which * 1009) + index);
        return [.. Enumerable.Range(0, count).Select(_ => (2 * random.NextSingle()) - 1)];
    }
}
