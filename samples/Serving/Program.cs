// Serves a small model to clients that come and go, over one cache that is sharded over ranks (continuous batching).
//   dotnet run [-- SECONDS]              three ranks, threads of this process
//   mpiexec -n 3 dotnet run [-- SECONDS] three processes
// Rank 0 has the queue and decides; every rank does what it is told. In the end each answer is held against a lone run, bit for bit.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Text.Json;
using TreeAttention;

double seconds = args.Length > 0 ? double.Parse(args[0], CultureInfo.InvariantCulture) : 30;
var options = new GroupOptions { Threads = 1 };
bool isRight = true;
if (ProcessEnvironment.Read().IsLaunched)
{
    using AttentionGroup group = AttentionGroup.Join(options);
    isRight = Serve(group, seconds);
}
else
{
    isRight = AttentionGroup.RunInProcess(3, group => Serve(group, seconds), options).All(right => right);
}

return isRight ? 0 : 1;

// One rank's part. Only rank 0 knows requests; the others see rows and tokens.
static bool Serve(AttentionGroup group, double seconds)
{
    using var engine = new Engine(group, Engine.Slots);
    Scheduler? scheduler = group.IsRoot ? new Scheduler(engine, new Clients(seed: 7), seconds) : null;
    while (true)
    {
        byte[] work = group.ShareWork(scheduler is null ? [] : JsonSerializer.SerializeToUtf8Bytes(scheduler.Next()));
        Plan plan = JsonSerializer.Deserialize<Plan>(work)!;
        if (plan.IsEnd)
        {
            break;
        }

        IReadOnlyList<Token> tokens = engine.Run(plan);
        scheduler?.Take(tokens);
    }

    return scheduler is null || Check(scheduler);
}

// Every finished request again, alone, on one rank, with its whole prompt read at once.
static bool Check(Scheduler scheduler)
{
    using AttentionGroup alone = AttentionGroup.JoinInProcess(1, new GroupOptions { Transport = TransportKind.InProcess, Threads = 1 })[0];
    using var engine = new Engine(alone, slots: 1);
    Request? wrong = scheduler.Answered.FirstOrDefault(request => !engine.Answer(request.Prompt, request.Tokens.Count).SequenceEqual(request.Tokens));
    Console.WriteLine(scheduler);
    Console.WriteLine(wrong is null
        ? $"all {scheduler.Answered.Count} answers have the bits of a lone run"
        : $"request {wrong.Number} has other bits than a lone run");
    return wrong is null && scheduler.Answered.Count > 0;
}

/// <summary>What every rank does next: rows that are free again, rows that get a request, and the rows that decode a token.</summary>
internal sealed record Plan(int[] Released, Admission[] Admitted, int[] Decoding, bool IsEnd = false);

/// <summary>A row gets a request: it begins with a shared prefix (or none), and reads its tokens.</summary>
internal sealed record Admission(int Row, int? Prefix, int[] Tokens);

/// <summary>A token that a row made, and a fingerprint of the numbers it was chosen by: equal when all of their bits are.</summary>
internal readonly record struct Token(int Id, ulong Bits);
