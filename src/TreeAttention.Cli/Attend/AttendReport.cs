using System.Globalization;
using System.IO;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Steps;
using TreeAttention.Runtime.Groups;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Attend;

/// <summary>What <c>treeattn attend</c> prints on rank 0.</summary>
internal static class AttendReport
{
    /// <summary>A few lines for a person and, with <c>--json</c>, one object on the last line.</summary>
    public static void Print(
        AttendRequest request, AttentionGroup group, ShardedCall call, AttentionStep step, StepMeasurement cost, VerificationReport? verification)
    {
        AttentionPlan plan = request.Plan.Plan;
        var row = new ResultRow
        {
            Algorithm = plan.Algorithm.Name(),
            Reduction = plan.Algorithm == AttentionAlgorithm.Tree ? step.Reduction.Name() : null,
            Transport = group.Context.Transport.Name,
            Device = group.Context.Device.Name,
            Dtype = call.Shard.Plan.Type.ShortName(),
            Ranks = group.Size,
            Cost = cost,
            Verification = verification,
        };
        TextWriter console = Terminal.Out;
        AttentionShape shape = call.Problem.Shape;
        string reduction = row.Reduction is null ? "" : $" ({row.Reduction})";
        console.WriteLine($"# {group.Description}; {group.Context.Device.Description}");
        console.WriteLine(
            $"# batch {shape.Batch}, {shape.QueryLength} queries x {shape.QueryHeads} heads, {shape.KeyLength} keys x {shape.KvHeads} heads, "
            + $"dim {shape.HeadDim}/{shape.ValueDim}, {row.Dtype}, {request.Plan.Layout.Name} shards");
        console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{row.Algorithm}{reduction}: median {cost.MedianUs:F1} us (compute {cost.ComputeUs:F1}, communication {cost.CommunicationUs:F1}); "
            + $"sent {cost.BytesSent} bytes, {cost.Messages} messages, {cost.Collectives} collectives; peak {cost.PeakBytes} bytes"));
        console.WriteLine(PaperFormulas.Line(shape, group.Size));
        if (verification is not null)
        {
            console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"verified {verification.Rows} rows against float64: largest error {verification.ErrorMax:E2}, bound {verification.ErrorBound:E2}, "
                + $"{verification.Wrong} wrong"));
            if (verification.Wrong > 0)
            {
                Terminal.Error.WriteLine($"treeattn: {verification.Wrong} of {verification.Rows} rows lie outside the bound; the worst is {verification.WorstRow}.");
            }
        }

        if (request.Json)
        {
            console.WriteLine(ResultRow.Line(row.WriteMembers));
        }

        console.Flush();
    }
}

/// <summary>The communication volumes that the tree-attention paper gives (arXiv 2408.04093, section 5), to set beside what was counted.</summary>
internal static class PaperFormulas
{
    /// <summary>One comment line.</summary>
    public static string Line(AttentionShape shape, int ranks)
    {
        int hidden = shape.QueryHeads * shape.ValueDim;
        double ring = ExpectedTraffic.PaperRingElements(
            shape.Batch, (double)shape.KeyLength / ranks, shape.KvHeads * shape.HeadDim, ranks);
        double tree = ExpectedTraffic.PaperTreeElements(shape.Batch, hidden, shape.QueryHeads, ranks);
        return string.Create(
            CultureInfo.InvariantCulture,
            $"# the paper's formulas: V_ring = 2btd·p = {ring:F0} elements, V_tree = 2(p-1)/p·(bd + 2bn) = {tree:F1} elements");
    }
}
