using System;
using System.IO;
using System.Linq;
using System.Runtime.Versioning;
using TreeAttention.Runtime.Files;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Runtime.Files;

[SupportedOSPlatform("linux")]
public class NpyWriterTests : TensorFileTestBase
{
    [Theory]
    [InlineData(new long[] { })]
    [InlineData(new long[] { 7 })]
    [InlineData(new long[] { 0, 3 })]
    [InlineData(new long[] { 3, 5, 7, 11 })]
    [InlineData(new long[] { 2, 70_001 })]
    public void What_is_written_in_pieces_is_read_back(long[] shape)
    {
        float[] values = [.. Enumerable.Range(0, (int)shape.Aggregate(1L, (a, b) => a * b)).Select(i => i - 0.5f)];

        Write(At("out.npy"), values, shape, piece: 13);

        using var file = TensorFile.Open(At("out.npy"), "output");
        Assert.Equal(shape, file.View.Shape);
        Assert.Equal(values, Elements(file.View));
        AssertNothingElse("out.npy");
    }

    [Theory]
    [InlineData(new long[] { })]
    [InlineData(new long[] { 7 })]
    [InlineData(new long[] { 1, 16, 4, 64 })]
    [InlineData(new long[] { 123_456, 0, 1 })]
    public void The_file_is_to_the_byte_what_numpy_saves(long[] shape)
    {
        float[] values = new float[shape.Aggregate(1L, (a, b) => a * b)];
        Numpy.Run($"import numpy, sys; numpy.save(sys.argv[1], numpy.zeros([{string.Join(",", shape)}], '<f4'))", At("numpy.npy"));

        Write(At("out.npy"), values, shape, piece: 100_000);

        Assert.Equal(File.ReadAllBytes(At("numpy.npy")), File.ReadAllBytes(At("out.npy")));
    }

    [Fact]
    public void An_existing_file_is_refused_before_any_work_and_stays()
    {
        string path = Save([1, 2, 3], "out.npy");

        FaultException fault = CannotCreate(path);

        Assert.Contains("give force: true", fault.Message, StringComparison.Ordinal);
        Assert.Equal([1, 2, 3], File.ReadAllBytes(path));
        AssertNothingElse("out.npy");
    }

    [Fact]
    public void With_force_the_old_file_stays_until_the_commit_and_keeps_its_permissions()
    {
        string path = Save([1, 2, 3], "out.npy");
        File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.GroupRead);
        using var writer = NpyWriter.CreateOutput(path, force: true);
        writer.Begin(200_000);
        writer.Write(new float[200_000]);

        byte[] before = File.ReadAllBytes(path);
        writer.Commit();

        Assert.Equal([1, 2, 3], before);
        Assert.Equal(128 + 800_000, new FileInfo(path).Length);
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.GroupRead, File.GetUnixFileMode(path));
        AssertNothingElse("out.npy");
    }

    [Fact]
    public void Without_a_commit_nothing_is_left_and_the_old_file_is_as_it_was()
    {
        string path = Save([1, 2, 3], "out.npy");

        using (var writer = NpyWriter.CreateOutput(path, force: true))
        {
            writer.Begin(100_000);
            writer.Write(new float[99_999]);
            Assert.Equal(2, Directory.GetFiles(Folder).Length); // the control: there was something to remove
        }

        Assert.Equal([1, 2, 3], File.ReadAllBytes(path));
        AssertNothingElse("out.npy");
    }

    [Fact]
    public void Preflight_alone_leaves_nothing_behind()
    {
        using var writer = NpyWriter.CreateOutput(At("out.npy"), force: false);

        Assert.Empty(Directory.GetFileSystemEntries(Folder));
    }

    [Theory]
    [InlineData("missing/out.npy", "does not exist")]
    [InlineData("folder", "directory")]
    [InlineData("none/", "directory")]
    [InlineData("file/out.npy", "cannot be created")]
    public void A_place_where_no_file_can_be_is_73(string name, string word)
    {
        _ = Directory.CreateDirectory(At("folder"));
        _ = Save([1], "file");

        Assert.Contains(word, CannotCreate(At(name), force: true).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("")]
    [InlineData("/proc/out.npy")]
    [InlineData("a\0b.npy")]
    public void A_place_that_takes_no_files_is_73(string path) => _ = CannotCreate(path, force: true);

    [Fact]
    public void A_directory_this_user_may_not_write_is_73()
    {
        Assert.SkipWhen(Environment.IsPrivilegedProcess, "root may write everywhere.");
        string folder = Directory.CreateDirectory(At("closed")).FullName;
        File.SetUnixFileMode(folder, UnixFileMode.UserRead | UnixFileMode.UserExecute);

        _ = CannotCreate(Path.Join(folder, "out.npy"));
    }

    [Fact]
    public void A_file_that_appears_meanwhile_is_not_overwritten_without_force()
    {
        using var writer = NpyWriter.CreateOutput(At("out.npy"), force: false);
        writer.Begin(1);
        writer.Write([1]);
        string path = Save([1, 2, 3], "out.npy");

        FaultException fault = Assert.Throws<FaultException>(writer.Commit);
        writer.Dispose();

        Assert.Equal(FaultCode.CannotCreate, fault.Code);
        Assert.Equal([1, 2, 3], File.ReadAllBytes(path));
        AssertNothingElse("out.npy");
    }

    [Fact]
    public void A_symbolic_link_stays_a_link_and_its_target_is_replaced()
    {
        string target = Save([1, 2, 3], "target.npy");
        _ = File.CreateSymbolicLink(At("link.npy"), target);

        Write(At("link.npy"), [1], [1], piece: 1);

        Assert.Equal(target, new FileInfo(At("link.npy")).LinkTarget);
        using var file = TensorFile.Open(target, "output");
        Assert.Equal([1], Elements(file.View));
    }

    [Fact]
    public void A_symbolic_link_to_nothing_yet_creates_its_target_and_one_in_a_circle_is_73()
    {
        _ = File.CreateSymbolicLink(At("link.npy"), "target.npy");
        _ = File.CreateSymbolicLink(At("circle.npy"), "circle.npy");

        Write(At("link.npy"), [1], [1], piece: 1);

        Assert.Null(new FileInfo(At("target.npy")).LinkTarget);
        Assert.Equal(132, new FileInfo(At("target.npy")).Length);
        _ = CannotCreate(At("circle.npy"), force: true);
    }

    [Fact]
    public void Dev_null_takes_everything_and_stays_a_device()
    {
        Write("/dev/null", new float[100_000], [100_000], piece: 40_000);

        Assert.False(File.GetAttributes("/dev/null").HasFlag(FileAttributes.Directory));
        Assert.Equal(0, new FileInfo("/dev/null").Length);
        Assert.Empty(Directory.GetFiles("/dev", ".treeattn-*"));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(1_000_000)]
    public void A_full_disk_is_74(int elements)
    {
        using var writer = NpyWriter.CreateOutput("/dev/full", force: false);
        writer.Begin(elements);

        FaultException fault = Assert.Throws<FaultException>(() =>
        {
            writer.Write(new float[elements]);
            writer.Commit();
        });

        Assert.Equal(FaultCode.InputOutput, fault.Code);
        Assert.Contains("/dev/full", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_tensor_the_disk_has_no_room_for_is_74_before_it_is_written_and_leaves_nothing()
    {
        string path = Save([1, 2, 3], "out.npy");
        using var writer = NpyWriter.CreateOutput(path, force: true);

        FaultException fault = Assert.Throws<FaultException>(() => writer.Begin(1L << 44)); // 64 TiB
        writer.Dispose();

        Assert.Equal(FaultCode.InputOutput, fault.Code);
        Assert.Contains($"{(1L << 46) + 128} bytes", fault.Message, StringComparison.Ordinal);
        Assert.Equal([1, 2, 3], File.ReadAllBytes(path));
        AssertNothingElse("out.npy");
    }

    [Fact]
    public void The_number_of_elements_must_be_that_of_the_shape()
    {
        using var writer = NpyWriter.CreateOutput(At("out.npy"), force: false);
        _ = Assert.Throws<InvalidOperationException>(() => writer.Write([1]));
        _ = Assert.Throws<InvalidOperationException>(writer.Commit);
        _ = Assert.Throws<ArgumentOutOfRangeException>(() => writer.Begin(-1));
        _ = Assert.Throws<ArgumentOutOfRangeException>(() => writer.Begin(1L << 40, 1L << 40));
        writer.Begin(2);

        writer.Write([1]);
        _ = Assert.Throws<InvalidOperationException>(writer.Commit);
        _ = Assert.Throws<InvalidOperationException>(() => writer.Write([2, 3]));
        _ = Assert.Throws<InvalidOperationException>(() => writer.Begin(2));
        Assert.False(File.Exists(At("out.npy")));
        writer.Write([2]);
        writer.Commit();

        using var file = TensorFile.Open(At("out.npy"), "output");
        Assert.Equal([1, 2], Elements(file.View));
    }

    private static void Write(string path, float[] values, long[] shape, int piece)
    {
        using var writer = NpyWriter.CreateOutput(path, force: true);
        writer.Begin(shape);
        for (int at = 0; at < values.Length; at += piece)
        {
            writer.Write(values.AsSpan(at, Math.Min(piece, values.Length - at)));
        }

        writer.Commit();
    }

    private static FaultException CannotCreate(string path, bool force = false)
    {
        FaultException fault = Assert.Throws<FaultException>(() => NpyWriter.CreateOutput(path, force));
        Assert.Equal(FaultCode.CannotCreate, fault.Code);
        return fault;
    }

    private void AssertNothingElse(string name) => Assert.Equal([At(name)], Directory.GetFileSystemEntries(Folder));
}
