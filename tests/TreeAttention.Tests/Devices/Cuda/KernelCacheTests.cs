using System;
using System.IO;
using System.Linq;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Compiled kernels on disk: found again, never believed when damaged.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class KernelCacheTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("treeattn-cache-");
    private readonly KernelProgram _program = new("states.cu", ["merge_states"], false);

    public KernelCacheTests() => _ = EmulatedCuda.Platform;

    public void Dispose() => _folder.Delete(recursive: true);

    [Fact]
    public void A_program_is_kept_in_one_file_that_the_next_process_reads()
    {
        CompiledProgram compiled = Cache("one").Get(_program);
        DateTime written = OnlyFile().LastWriteTimeUtc;

        KernelCache.ForgetInProcess();
        CompiledProgram again = Cache("one").Get(_program);

        Assert.Equal(compiled.Image, again.Image);
        Assert.Equal(compiled.Names, again.Names);
        Assert.Equal(written, OnlyFile().LastWriteTimeUtc);
    }

    [Theory]
    [InlineData(0)] // what the file calls itself
    [InlineData(20)] // its digest
    [InlineData(200)] // its contents
    public void A_damaged_file_is_compiled_and_written_anew(int at)
    {
        CompiledProgram compiled = Cache("two").Get(_program);
        string path = OnlyFile().FullName;
        byte[] right = File.ReadAllBytes(path);
        byte[] damaged = [.. right];
        damaged[at] ^= 1;
        File.WriteAllBytes(path, damaged);

        KernelCache.ForgetInProcess();
        CompiledProgram again = Cache("two").Get(_program);

        Assert.Equal(compiled.Names, again.Names);
        Assert.NotEqual(damaged, File.ReadAllBytes(path));
        Assert.Equal(right.Length, File.ReadAllBytes(path).Length);
    }

    [Fact]
    public void A_file_that_was_cut_short_is_compiled_anew()
    {
        Cache("three").Get(_program);
        string path = OnlyFile().FullName;
        byte[] right = File.ReadAllBytes(path);
        File.WriteAllBytes(path, right[..(right.Length / 2)]);

        KernelCache.ForgetInProcess();
        Cache("three").Get(_program);

        Assert.Equal(right.Length, File.ReadAllBytes(path).Length);
    }

    [Fact]
    public void Another_compiler_another_architecture_and_another_kernel_have_files_of_their_own()
    {
        var other = new KernelProgram("states.cu", ["weigh"], false);
        var newer = new KernelCache(_folder.FullName, new KernelCompiler(100), "one");

        string?[] paths = [Cache("one").PathOf(_program), Cache("two").PathOf(_program), Cache("one").PathOf(other), newer.PathOf(_program)];

        Assert.Equal(paths.Length, paths.Distinct().Count());
    }

    [Fact]
    public void A_folder_that_cannot_be_written_costs_no_result()
    {
        var cache = new KernelCache("/proc/no-such-folder", new KernelCompiler(90), "four");

        CompiledProgram compiled = cache.Get(_program);

        Assert.NotEmpty(compiled.Image);
    }

    private KernelCache Cache(string identity) => new(_folder.FullName, new KernelCompiler(90), identity);

    private FileInfo OnlyFile() => Assert.Single(_folder.GetFiles());
}
