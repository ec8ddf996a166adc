using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>Every kind of step runs through the group: what one rank alone meets in it ends the group for all, and the others learn what it was.</summary>
public sealed class GroupStepTests
{
    private const string Fault = "the device is out of time"; // as FailingDevice says it

    private static readonly GroupOptions _options = new() { Device = DeviceKind.Cpu, Threads = 1 };
    private static readonly DecodeCase _decode = new("steps of a group") { Options = new AttentionOptions { Causal = true }, NewTokens = 2, QueryLength = 2 };
    private static readonly DecodeOptions _steps = _decode.DecodeOptions(ReductionKind.Butterfly); // whose waits take no core from the others
    private static readonly PrefillCase _prompts = new("prompts of a group") { Lengths = [90, 40], Padding = [0, 0] };

    [Theory, InlineData("decode"), InlineData("speculate"), InlineData("prefill"), InlineData("attend")]
    public void A_fault_of_one_rank_in_a_step_ends_the_group_on_all(string kind)
    {
        Exception?[] seen = RunOnThree(group => Step(group, kind));

        Assert.IsType<TimeoutException>(seen[1]);
        Assert.All((int[])[0, 2], rank =>
        {
            FaultException fault = Assert.IsType<FaultException>(seen[rank]);
            Assert.Equal(FaultCode.PeerLost, fault.Code);
            Assert.Contains(Fault, fault.Message, StringComparison.Ordinal);
        });
    }

    [Fact]
    public void A_step_beside_the_group_leaves_the_others_without_the_fault()
    {
        Exception?[] seen = RunOnThree(group =>
        {
            using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
            using DecodeStep step = group.CreateStep(cache, _steps);
            (float[] key, float[] value) = _decode.LastTokens();
            step.Run(0, _decode.Query, key, value, Room(), Lines());
        });

        Assert.IsType<TimeoutException>(seen[1]);
        Assert.DoesNotContain(Fault, Assert.IsType<FaultException>(seen[0]).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_step_or_a_cache_of_another_group_is_refused()
    {
        using AttentionGroup mine = AttentionGroup.JoinInProcess(1, _options)[0];
        using AttentionGroup other = AttentionGroup.JoinInProcess(1, _options)[0];
        using ShardedKvCache cache = mine.CreateCache(_decode.CacheOptions);
        using DecodeStep step = mine.CreateStep(cache, _steps);
        using SpeculativeStep tree = mine.CreateSpeculativeStep(cache, _steps, TokenTree.FromParents([-1, 0]));
        (float[] key, float[] value) = _decode.LastTokens();

        Action[] calls =
        [
            () => other.CreateStep(cache, _steps),
            () => other.CreateSpeculativeStep(cache, _steps, TokenTree.FromParents([-1, 0])),
            () => other.CreatePrefill(cache, _prompts.Options(PrefillMethod.Chunked)),
            () => other.Decode(step, 0, _decode.Query, key, value, Room(), Lines(), TestContext.Current.CancellationToken),
            () => other.Attend(step, 0, _decode.Query, Room(), Lines(), TestContext.Current.CancellationToken),
            () => other.Speculate(tree, 0, _decode.Query, key, value, Room(), Lines(), TestContext.Current.CancellationToken),
            () => other.Commit(tree, 0, [0]),
            () => other.Reject(tree, 0),
            () => CacheFiles.Save(other, cache, "nowhere"),
            () => CacheFiles.Load(other, cache, "nowhere"),
        ];

        Assert.All(calls, call => Assert.Contains("another group", Assert.Throws<ArgumentException>(call).Message, StringComparison.Ordinal));
        Assert.Equal(0, cache.LengthOf(0));
    }

    [Fact]
    public void A_committed_path_stays_and_a_rejected_tree_goes()
    {
        using AttentionGroup group = AttentionGroup.JoinInProcess(1, _options)[0];
        using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
        using SpeculativeStep step = group.CreateSpeculativeStep(cache, _steps, TokenTree.FromParents([-1, 0]));
        (float[] key, float[] value) = _decode.LastTokens();

        group.Speculate(step, 0, _decode.Query, key, value, Room(), Lines(), TestContext.Current.CancellationToken);
        group.Commit(step, 0, 0);
        group.Reject(step, 1);

        Assert.Equal((1, 0), (cache.LengthOf(0, 0), cache.LengthOf(0, 1)));
    }

    private static void Step(AttentionGroup group, string kind)
    {
        CancellationToken cancellation = TestContext.Current.CancellationToken;
        if (kind == "attend")
        {
            int floats = 20 * _decode.KvHeads * _decode.HeadDim;
            var options = new AttendOptions
            {
                QueryHeads = _decode.QueryHeads,
                KvHeads = _decode.KvHeads,
                HeadDim = _decode.HeadDim,
                ValueDim = _decode.ValueDim,
                Plan = _steps.Plan,
            };
            group.Attend(new float[_decode.QueryHeads * _decode.HeadDim], new float[floats], new float[floats], options, cancellation);
            return;
        }

        using ShardedKvCache cache = group.CreateCache(kind == "prefill" ? _prompts.Cache : _decode.CacheOptions);
        if (kind == "prefill")
        {
            using PrefillStep prefill = group.CreatePrefill(cache, _prompts.Options(PrefillMethod.Ring));
            IReadOnlyList<PromptToken> tokens = prefill.Tokens;
            group.Prefill(
                prefill, 0, _prompts.Of(1, 0, tokens), _prompts.Of(2, 0, tokens), _prompts.Of(3, 0, tokens), new float[tokens.Count * 4 * 7],
                new float[tokens.Count * 4], cancellation);
            return;
        }

        (float[] key, float[] value) = _decode.LastTokens();
        if (kind == "decode")
        {
            using DecodeStep step = group.CreateStep(cache, _steps);
            group.Decode(step, 0, _decode.Query, key, value, Room(), Lines(), cancellation);
            return;
        }

        using SpeculativeStep tree = group.CreateSpeculativeStep(cache, _steps, TokenTree.FromParents([-1, 0]));
        group.Speculate(tree, 0, _decode.Query, key, value, Room(), Lines(), cancellation);
    }

    // Rank 1 computes on a device that fails when it first attends. What each rank threw.
    private static Exception?[] RunOnThree(Action<AttentionGroup> body)
    {
        IReadOnlyList<AttentionGroup> groups = AttentionGroup.JoinInProcess(3, _options);
        var seen = new Exception?[3];
        Thread[] threads = [.. groups.Select((whole, rank) => new Thread(() =>
        {
            using (whole)
            {
                using var failing = new FailingDevice(whole.Context.Device, 0);
                using AttentionGroup? onFailing = rank == 1 ? new AttentionGroup(whole.Context with { Device = failing }, whole, whole.Description) : null;
                seen[rank] = Record.Exception(() => body(onFailing ?? whole));
            }
        }))];
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => Assert.True(thread.Join(TimeSpan.FromSeconds(60)), "a rank does not end"));
        return seen;
    }

    private static float[] Room() => new float[_decode.Rows * 2 * _decode.QueryHeads * _decode.ValueDim];

    private static float[] Lines() => new float[_decode.Rows * 2 * _decode.QueryHeads];
}
