using System.IO;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary><c>--reproducible</c> on the GPU: the program writes the same bytes for any number of ranks and over any transport.</summary>
[Collection("mpi")]
public sealed class ReproducibleGpuTests
{
    // Two pages and a bit: of many ranks most hold no key.
    private const int Keys = 1100;

    public static TheoryData<string> Commands => ["attend", "decode"];

    [Theory, MemberData(nameof(Commands))]
    public void In_process_ranks_write_the_same_bytes_for_any_number_of_them(string command)
    {
        using var files = new CliFiles();
        string[] arguments = Arguments(files, command);
        byte[] one = Alone(files, [.. arguments, "--reproducible"]);

        foreach (string ranks in (string[])["2", "3", "4", "5", "7", "8"])
        {
            Assert.Equal(one, Alone(files, [.. arguments, "--reproducible", "--ranks", ranks]));
        }

        Assert.NotEqual(one, Alone(files, [.. arguments, "--ranks", "3", "--reduction", "three-allreduce"])); // a comparison that can fail
    }

    [Theory, MemberData(nameof(Commands))]
    public void Ranks_over_NCCL_write_the_bytes_of_one(string command)
    {
        using var files = new CliFiles();
        string[] arguments = [.. Arguments(files, command), "--reproducible"];
        byte[] one = Alone(files, arguments);

        foreach (string ranks in (string[])["1", "2", "5"])
        {
            Assert.Equal(one, Alone(files, [.. arguments, "--transport", "nccl", "--ranks", ranks]));
        }

        Assert.Equal(one, Launched("openmpi", 3, files, [.. arguments, "--transport", "nccl"]));
    }

    [Theory, InlineData("openmpi", 3, "decode"), InlineData("mpich", 2, "attend"), InlineData("mpich", 5, "decode")]
    public void Ranks_over_MPI_write_the_bytes_of_one(string mpi, int ranks, string command)
    {
        using var files = new CliFiles();
        string[] arguments = [.. Arguments(files, command), "--reproducible"];

        Assert.Equal(Alone(files, arguments), Launched(mpi, ranks, files, arguments));
    }

    [Fact]
    public void A_prefill_in_chunks_writes_the_same_bytes_for_any_number_of_ranks()
    {
        using var files = new CliFiles();
        const int tokens = 520; // a page and a bit; every token has its query
        string[] arguments =
        [
            "decode", .. files.Tensors(new AttentionShape(1, tokens, tokens, 1, 1, 16, 16)), "--causal", "--device", "cuda", "--threads", "1", "--force",
            "--output", files.At("output.npy"), "--context", "518", "--prefill", "chunked", "--chunk", "260", "--reproducible",
        ];

        byte[] one = Alone(files, arguments);

        Assert.Equal(one, Alone(files, [.. arguments, "--ranks", "3"]));
        Assert.Equal(one, Alone(files, [.. arguments, "--ranks", "2", "--transport", "nccl"]));
    }

    private static string[] Arguments(CliFiles files, string command) =>
    [
        command, .. files.Tensors(new AttentionShape(1, 4, Keys, 2, 1, 16, 24)), "--causal", "--device", "cuda", "--threads", "1", "--force",
        "--output", files.At("output.npy"), .. command == "decode" ? (string[])["--query-len", "2", "--rotary", "8"] : [],
    ];

    private static byte[] Alone(CliFiles files, string[] arguments)
    {
        using var process = TreeattnProcess.Start(arguments, EmulatedCuda.Variables);
        process.Wait().Exits(0);
        return File.ReadAllBytes(files.At("output.npy"));
    }

    private static byte[] Launched(string mpi, int ranks, CliFiles files, string[] arguments)
    {
        using var process = TreeattnProcess.StartRanks(mpi, ranks, arguments, EmulatedCuda.Variables);
        process.Wait().Exits(0);
        return File.ReadAllBytes(files.At("output.npy"));
    }
}
