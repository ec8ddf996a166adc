using System.IO;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Cli;

/// <summary>Standard streams that are closed or full, results on a disk that fills up: the contract's codes, and nothing lost in silence.</summary>
public sealed class StreamsTests
{
    private static readonly AttentionShape _shape = new(1, 2, 20, 4, 2, 8, 8);

    [Theory]
    [InlineData(">/dev/full", "--help")]
    [InlineData(">&-", "--version")]
    [InlineData(">/dev/full", "verify --cases 2 --ranks 2")]
    [InlineData(">&- <&-", "decode --context 64 --steps 1 --heads 2 --kv-heads 1 --head-dim 16")]
    public void Standard_output_that_takes_nothing_ends_with_74(string redirection, string arguments)
    {
        using var process = TreeattnProcess.StartRedirected(redirection, arguments.Split(' '));

        process.Wait().Exits(74).Says("Standard output cannot be written");
    }

    [Fact]
    public void What_is_asked_for_as_a_file_is_there_although_the_report_is_lost()
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);

        using var process = TreeattnProcess.StartRedirected(
            ">&- <&-", ["attend", .. tensors, "--output", files.At("output.npy"), "--lse", files.At("lse.npy")]);

        process.Wait().Exits(74).Says("it is closed");
        files.AssertRight(_shape, new AttentionOptions());
    }

    [Theory]
    [InlineData("2>/dev/full")]
    [InlineData("2>&-")]
    [InlineData("2>&- >&- <&-")]
    public void A_fault_keeps_its_code_where_nobody_can_be_told(string redirection)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        File.Delete(files.At("key.npy"));

        using var process = TreeattnProcess.StartRedirected(redirection, ["attend", .. tensors, "--output", files.At("output.npy")]);

        process.Wait().Exits(66);
        Assert.Equal(2, files.Names.Length);
    }

    [Fact]
    public void A_reader_that_goes_ends_the_run()
    {
        string[] bench = ["bench", "-b", "512", "-e", "1g", "-f", "2", "-n", "1", "-w", "0", "--heads", "2", "--kv-heads", "1", "--head-dim", "16", "-c", "0"];

        using var process = TreeattnProcess.StartRedirected("| head -1; exit ${PIPESTATUS[0]}", bench);

        // Without the end the contexts would grow for hours.
        process.Wait().Exits(74).Says("Standard output cannot be written: broken pipe");
    }

    [Fact]
    public void No_terminal_gets_escape_codes()
    {
        using var process = TreeattnProcess.Start(["--version"], ("TERM", "xterm"));

        Assert.DoesNotContain('\e', process.Wait().Exits(0).Output);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Outputs_through_relative_links_replace_what_they_lead_to(bool exists)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        Directory.CreateDirectory(files.At("sub"));
        File.CreateSymbolicLink(files.At("output.npy"), "sub/real.npy");
        if (exists)
        {
            File.WriteAllText(files.At("sub/real.npy"), "before");
        }

        TreeattnProcess.Run(
            ["attend", .. tensors, "--output", Path.GetRelativePath(Directory.GetCurrentDirectory(), files.At("output.npy")), "--force"]).Exits(0);

        Assert.Equal("sub/real.npy", new FileInfo(files.At("output.npy")).LinkTarget);
        Assert.True(new FileInfo(files.At("sub/real.npy")).Length > 100);
    }

    [Theory]
    [InlineData("link.npy", "value.npy", "--output", "link.npy")] // the output is a link to the input
    [InlineData("link.npy", "value.npy", "--value", "link.npy")] // the input is a link to the output
    [InlineData("sub", ".", "--output", "sub/value.npy")] // a directory on the way is a link
    [InlineData("sub", ".", "--lse", "sub/output.npy")] // two outputs that are not there yet
    public void A_file_of_the_call_by_another_name_is_never_replaced(string link, string target, string option, string name)
    {
        using var files = new CliFiles();
        string[] tensors = files.Tensors(_shape);
        byte[] before = File.ReadAllBytes(files.At("value.npy"));
        File.CreateSymbolicLink(files.At(link), target);
        string[] inputs = option == "--value" ? [.. tensors[..^1], files.At(name)] : tensors;
        string[] outputs = option switch
        {
            "--output" => ["--output", files.At(name)],
            "--lse" => ["--output", files.At("output.npy"), "--lse", files.At(name)],
            _ => ["--output", files.At("value.npy")],
        };

        TreeattnProcess.Run(["attend", .. inputs, .. outputs, "--force"]).Exits(2).Says("a file of its own");

        Assert.Equal(before, File.ReadAllBytes(files.At("value.npy")));
    }

    [Fact]
    public void A_name_that_no_file_system_holds_is_refused_before_the_work()
    {
        using var files = new CliFiles();
        string name = files.At(new string('x', 300) + ".npy");

        TreeattnProcess.Run(["attend", .. files.Tensors(_shape), "--output", name]).Exits(73).Says("longer than the file system can hold");
    }
}
