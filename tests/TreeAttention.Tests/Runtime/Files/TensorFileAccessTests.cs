using System;
using System.IO;
using System.Linq;
using System.Runtime.Versioning;
using TreeAttention.Distributed.Loading;
using TreeAttention.Runtime.Files;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Runtime.Files;

[SupportedOSPlatform("linux")]
public class TensorFileAccessTests : TensorFileTestBase
{
    [Theory]
    [InlineData("missing.npy")]
    [InlineData("missing.safetensors")]
    [InlineData("missing.safetensors:key")]
    [InlineData("missing/too.npy")]
    [InlineData("missing.txt")]
    public void A_file_that_is_not_there_is_66(string name) =>
        Assert.Contains("does not exist", Refused(At(name), FaultCode.MissingInput).Message, StringComparison.Ordinal);

    [Theory]
    [InlineData("")]
    [InlineData("a\0b.npy")]
    public void A_name_that_no_file_can_have_is_66(string spec) => Refused(spec, FaultCode.MissingInput);

    [Fact]
    public void A_directory_is_66()
    {
        _ = Directory.CreateDirectory(At("d.npy"));

        Assert.Contains("directory", Refused(At("d.npy"), FaultCode.MissingInput).Message, StringComparison.Ordinal);
    }

    [Fact(Timeout = 10_000)]
    public async System.Threading.Tasks.Task A_pipe_is_66_and_is_not_waited_for()
    {
        using var make = System.Diagnostics.Process.Start("mkfifo", [At("p.npy")]);
        await make.WaitForExitAsync(TestContext.Current.CancellationToken);

        Assert.Contains("pipe", Refused(At("p.npy"), FaultCode.MissingInput).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_this_user_may_not_read_is_66()
    {
        Assert.SkipWhen(Environment.IsPrivilegedProcess, "root may read every file.");
        string path = Save(TensorFileBytes.Npy("<f4", false, "()", new byte[4]), "a.npy");
        File.SetUnixFileMode(path, UnixFileMode.None);

        _ = Refused(path, FaultCode.MissingInput);
    }

    [Fact]
    public void A_file_of_another_kind_is_65_and_tells_the_kinds_there_are()
    {
        RefusedWith(Save(new byte[9], "a.txt"), ".safetensors:TENSOR");
        RefusedWith(Save(new byte[9], "a.npz"), "unzip");
    }

    [Theory]
    [InlineData("(4, 20000, 1, 8)", false)]
    [InlineData("(4, 20000, 1, 8)", true)] // the first axis runs fastest: rows are gathered from all over the file
    public void A_file_that_becomes_shorter_while_it_is_read_is_65_and_no_signal(string shape, bool columnMajor)
    {
        float[] numbers = [.. Enumerable.Range(0, 640_000).Select(i => (float)i)];
        byte[] bytes = TensorFileBytes.Npy("<f4", columnMajor, shape, TensorFileBytes.Floats(numbers));
        string path = Save(bytes, "a.npy");
        using var file = TensorFile.Open(path, "key");
        var rows = new TensorRows(file.View);
        double[] row = new double[8];
        rows.Read(0, 0, 0, row);
        Assert.Equal(columnMajor ? 80_000.0 : 1.0, row[1]);

        using (var shorter = new FileStream(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite))
        {
            shorter.SetLength(bytes.Length - 1);
        }

        FaultException fault = Assert.Throws<FaultException>(() => rows.Read(3, 19_999, 0, row));
        Assert.Equal(FaultCode.BadInput, fault.Code);
        Assert.Contains($"became shorter while it was read: byte {bytes.Length - 1} of {bytes.Length} is gone", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_stays_readable_while_another_replaces_it()
    {
        string path = Save(TensorFileBytes.Npy("<f4", false, "(1,)", TensorFileBytes.Floats(1)), "a.npy");
        using var old = TensorFile.Open(path, "query");

        using (var writer = NpyWriter.CreateOutput(path, force: true))
        {
            writer.Begin(1);
            writer.Write([2]);
            writer.Commit();
        }

        using var replaced = TensorFile.Open(path, "query");
        Assert.Equal([1], Elements(old.View));
        Assert.Equal([2], Elements(replaced.View));
    }

    [Fact]
    public void Opening_a_file_larger_than_memory_touches_its_header_alone()
    {
        const long elements = 1L << 40;
        string path = Save(TensorFileBytes.Npy("<f4", false, $"({elements}, 1)", []), "a.npy");
        long header = new FileInfo(path).Length;
        using (FileStream sparse = File.OpenWrite(path))
        {
            try
            {
                sparse.SetLength(header + (elements * sizeof(float)));
            }
            catch (IOException)
            {
                Assert.Skip("This file system has no files of 4 TiB, not even sparse ones.");
            }
        }

        long before = GC.GetAllocatedBytesForCurrentThread();
        using var file = TensorFile.Open(path, "key");

        Assert.Equal(elements, file.View.Count);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 64 * 1024);
    }
}
