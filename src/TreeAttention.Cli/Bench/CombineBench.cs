using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Runtime.Measurement;

namespace TreeAttention.Cli.Bench;

/// <summary>The reductions alone, on a state of the call's size, beside a bare all-reduce (sum) of the same bytes on the same transport.</summary>
internal sealed class CombineBench(BenchRequest request, AttentionGroup group, AttentionShape shape)
{
    private const string Bare = "bare-allreduce";
    private readonly IDevice _device = group.Context.Device;

    /// <summary>Times every reduction in interleaved rounds; the state is put back before each run.</summary>
    public IReadOnlyList<BenchRow> Run()
    {
        int rows = shape.Batch * shape.QueryHeads * shape.QueryLength;
        long floats = PartialAttention.FloatsFor(rows, shape.ValueDim);
        Region pristine = _device.Allocate(floats * sizeof(float), ElementType.Float32);
        Region working = _device.Allocate(floats * sizeof(float), ElementType.Float32);
        Fill(new PartialAttention(pristine, rows, shape.ValueDim));
        var state = new PartialAttention(working, rows, shape.ValueDim);
        var entries = new List<Entry> { new(Bare, () => group.Context.Transport.AllReduce(working, ReduceOperation.Sum), null, group) };
        foreach (ReductionKind kind in Chosen())
        {
            Reduction reduction = group.Together(() => ReductionFactory.Create(kind, group.Context, rows, shape.ValueDim));
            entries.Add(new Entry(kind.Name(), () => reduction.Reduce(state), reduction, group));
        }

        for (int round = -request.Warmup; round < request.Iterations; round++)
        {
            foreach (Entry entry in round % 2 == 0 ? entries : entries.AsEnumerable().Reverse())
            {
                _device.Copy(pristine, working);
                _device.Synchronize();
                long start = entry.Runs.Begin();
                entry.Action();
                _device.Synchronize();
                long ticks = Stopwatch.GetTimestamp() - start;
                if (round >= 0)
                {
                    entry.Runs.End(ticks, 0, ticks);
                }
            }
        }

        BenchRow[] measured = [.. entries.Select(entry => RowOf(entry))];
        entries.ForEach(entry => entry.Reduction?.Dispose());
        _device.Free(pristine);
        _device.Free(working);
        return measured;
    }

    private IEnumerable<ReductionKind> Chosen() =>
        request.Plan.Chosen ? [request.Plan.Plan.Reduction] : ComparedPlans.Reductions(group);

    private void Fill(PartialAttention state)
    {
        using var host = new HostMemory(state.Region.Bytes, ElementType.Float32);
        var values = new PartialAttention(host.Region, state.Rows, state.ValueDim);
        var random = new Random(group.Rank);
        foreach (ref float value in values.Output)
        {
            value = random.NextSingle() - 0.5f;
        }

        for (int row = 0; row < state.Rows; row++)
        {
            values.Max[row] = random.NextSingle();
            values.Sum[row] = 1 + random.NextSingle();
        }

        _device.Copy(host.Region, state.Region);
        _device.Synchronize();
    }

    private BenchRow RowOf(Entry entry) => new(
        new ResultRow
        {
            Algorithm = "combine",
            Reduction = entry.Name,
            Transport = group.Context.Transport.Name,
            Device = _device.Name,
            Dtype = ElementType.Float32.ShortName(),
            Ranks = group.Size,
            Cost = entry.Runs.Summarise(),
        },
        shape, group.Nodes.Distinct().Count(), null, null, null, null, null);

    private sealed class Entry(string name, Action action, Reduction? reduction, AttentionGroup group)
    {
        public string Name { get; } = name;

        public Action Action { get; } = action;

        public Reduction? Reduction { get; } = reduction;

        public RunRecorder Runs { get; } = new(group);
    }
}
