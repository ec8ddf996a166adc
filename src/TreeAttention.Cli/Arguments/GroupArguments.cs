using System;
using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace TreeAttention.Cli.Arguments;

/// <summary>The options that say which ranks work: <c>--ranks --transport --device --oversubscribe-gpus --threads --nodes --stall-timeout --join-timeout</c>.</summary>
internal sealed class GroupArguments
{
    private readonly Option<int?> _ranks = new("--ranks")
    {
        Description = "Number of ranks: threads of this process, or the processes under mpiexec or srun (then it must equal their number).",
        CustomParser = result => ArgumentText.Integer(result, 1, 4096),
    };

    private readonly Option<TransportKind> _transport = ArgumentText.Choice(
        "--transport", "How ranks talk; auto is mpi under an MPI launcher, else in-process; nccl connects GPUs (--device cuda).",
        ("auto", TransportKind.Auto), ("in-process", TransportKind.InProcess), ("mpi", TransportKind.Mpi), ("nccl", TransportKind.Nccl));

    private readonly Option<DeviceKind> _device = ArgumentText.Choice(
        "--device", "What computes; auto is the GPU where every rank has one, else the CPU, and a line says why.",
        ("auto", DeviceKind.Auto), ("cpu", DeviceKind.Cpu), ("cuda", DeviceKind.Cuda));

    private readonly Option<bool> _oversubscribeGpus = new("--oversubscribe-gpus")
    {
        Description = "Several ranks of a node may share a GPU.",
    };

    private readonly Option<int?> _threads = new("--threads")
    {
        Description = "Threads of each rank; default max(1, cores / ranks of the node).",
        CustomParser = result => ArgumentText.Integer(result, 1, 1024),
    };

    private readonly Option<int[]?> _nodes = new("--nodes")
    {
        Description = "Node of each rank, as 0,0,1,1, in place of what the transport finds (for two-level).",
        CustomParser = result => ArgumentText.Integers(result, 0),
    };

    private readonly Option<double> _stallTimeout = new("--stall-timeout")
    {
        Description = "Seconds without progress of a rank that end the group (201).",
        DefaultValueFactory = _ => 10,
        CustomParser = Seconds,
    };

    private readonly Option<double> _joinTimeout = new("--join-timeout")
    {
        Description = "Seconds from the start within which the ranks that are processes must have come together (else 201).",
        DefaultValueFactory = _ => 60,
        CustomParser = Seconds,
    };

    /// <summary>Makes the options known to a command.</summary>
    public void AddTo(Command command)
    {
        command.Add(_ranks);
        command.Add(_transport);
        command.Add(_device);
        command.Add(_oversubscribeGpus);
        command.Add(_threads);
        command.Add(_nodes);
        command.Add(_stallTimeout);
        command.Add(_joinTimeout);
    }

    /// <summary>The group that the command line asks for.</summary>
    public GroupOptions Read(ParseResult parsed) => new()
    {
        Ranks = parsed.GetValue(_ranks),
        Transport = parsed.GetValue(_transport),
        Device = parsed.GetValue(_device),
        OversubscribeGpus = parsed.GetValue(_oversubscribeGpus),
        Threads = parsed.GetValue(_threads),
        Nodes = ArgumentText.Given(parsed, _nodes),
        StallTimeout = TimeSpan.FromSeconds(parsed.GetValue(_stallTimeout)),
        Log = (_, message) => Console.Error.WriteLine($"treeattn: {message}"),
        JoinTimeout = TimeSpan.FromSeconds(parsed.GetValue(_joinTimeout)),
    };

    private static double Seconds(ArgumentResult result) =>
        ArgumentText.Number(result, value => value is > 0 and <= 86_400, "a number of seconds above 0") ?? 0;
}

/// <summary>What <c>--cache-memory</c> says: bytes of each rank, or a share of what is free.</summary>
/// <param name="Bytes">Bytes; null for a share.</param>
/// <param name="Fraction">The share; null for bytes.</param>
internal sealed record CacheMemory(long? Bytes, double? Fraction)
{
    // The rest is for what steps allocate.
    private const double Available = 0.9;

    /// <summary>Reads the option's value.</summary>
    /// <exception cref="FormatException">It is neither.</exception>
    public static CacheMemory Parse(string text)
    {
        if (text == "available")
        {
            return new CacheMemory(null, Available);
        }

        int shift = text.Length == 0 ? 0 : char.ToUpperInvariant(text[^1]) switch { 'K' => 10, 'M' => 20, 'G' => 30, _ => 0 };
        return long.TryParse(shift == 0 ? text : text[..^1], NumberStyles.None, CultureInfo.InvariantCulture, out long value)
            && value <= long.MaxValue >> shift
            ? new CacheMemory(value << shift, null)
            : throw new FormatException($"give 'available', or bytes with K, M or G for powers of 1024, not '{text}'.");
    }

    /// <summary>As settings of ranks are compared.</summary>
    public override string ToString() => Bytes is { } bytes ? bytes.ToString(CultureInfo.InvariantCulture) : "available";
}
