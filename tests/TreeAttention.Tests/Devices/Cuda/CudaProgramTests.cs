using System;
using System.Diagnostics;
using System.IO;
using System.Linq;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>The program with <c>--device cuda</c>, as a process of its own.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaProgramTests
{
    [Fact]
    public void Verify_passes_on_emulated_gpus()
    {
        EmulatedCuda.RequireLibrary();

        (int code, string output, string errors) = Run(
            ["verify", "--device", "cuda", "--ranks", "2"], // nightly on one and three
            ("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", EmulatedCuda.Library), ("XDG_CACHE_HOME", EmulatedCuda.CacheFolder));

        Assert.True(code == 0, output + errors);
        Assert.Contains("Emulated device 0", output, StringComparison.Ordinal);
        Assert.Matches(@"[1-9][0-9]* passed, 0 failed", output);
        Assert.NotEmpty(Directory.GetFiles(Path.Combine(EmulatedCuda.CacheFolder, "treeattn")));
    }

    [Fact]
    public void More_ranks_than_gpus_end_with_69_and_the_flag_that_lets_them_share()
    {
        EmulatedCuda.RequireLibrary();
        (string Name, string Value)[] oneGpu =
        [
            ("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", EmulatedCuda.Library), ("XDG_CACHE_HOME", EmulatedCuda.CacheFolder),
            ("TREEATTN_EMULATION_DEVICES", "1"),
        ];

        (int refused, string output, string errors) = Run(["verify", "--device", "cuda", "--cases", "1", "--ranks", "2"], oneGpu);
        (int shared, string sharedOutput, _) = Run(["verify", "--device", "cuda", "--cases", "1", "--ranks", "2", "--oversubscribe-gpus"], oneGpu);

        Assert.Equal(69, refused);
        Assert.Empty(output);
        string line = Assert.Single(errors.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.Contains("1 GPU for 2 ranks", line, StringComparison.Ordinal);
        Assert.Contains("--oversubscribe-gpus", line, StringComparison.Ordinal);
        Assert.True(shared == 0, sharedOutput);
        Assert.Contains(" 0 failed", sharedOutput, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("103")] // newer than the compiler knows: PTX, which the driver translates
    [InlineData("86")]
    public void Gpus_of_other_generations_compute_too(string capability)
    {
        (int code, string output, string errors) = Run(
            ["verify", "--device", "cuda", "--cases", "1", "--ranks", "1"], [.. EmulatedCuda.Variables, ("TREEATTN_EMULATION_CAPABILITY", capability)]);

        Assert.True(code == 0, output + errors);
        Assert.Contains($"sm_{capability}", output, StringComparison.Ordinal);
    }

    [Fact]
    public void A_gpu_that_is_too_old_for_the_kernels_is_refused_with_69()
    {
        (int code, string output, string errors) = Run(
            ["verify", "--device", "cuda", "--cases", "1", "--ranks", "1"], [.. EmulatedCuda.Variables, ("TREEATTN_EMULATION_CAPABILITY", "75")]);

        Assert.Equal((69, ""), (code, output));
        Assert.Contains("of compute capability 7.5, but the kernels need 8.0", errors, StringComparison.Ordinal);
    }

    [Fact]
    public void More_batch_rows_than_a_grid_has_blocks_end_with_69()
    {
        (int code, _, string errors) = Run(
            ["bench", "--device", "cuda", "--ranks", "1", "-b", "1", "--batch", "65536", "--heads", "1", "--kv-heads", "1", "--head-dim", "1", "-n", "1", "-w", "0"],
            EmulatedCuda.Variables);

        Assert.Equal(69, code);
        Assert.Contains("A GPU attends to 65,535 batch rows", errors, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(700, "CUDA_ERROR_ILLEGAL_ADDRESS")]
    [InlineData(719, "CUDA_ERROR_LAUNCH_FAILED")]
    public void A_gpu_that_fails_ends_the_program_with_202_the_drivers_words_and_the_kernel(int code, string name)
    {
        EmulatedCuda.RequireLibrary();

        (int ended, _, string errors) = Run(
            ["verify", "--device", "cuda", "--cases", "1", "--ranks", "1"],
            ("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", EmulatedCuda.Library), ("XDG_CACHE_HOME", EmulatedCuda.CacheFolder),
            ("TREEATTN_EMULATION_FAULT", $"0:200:{code}"));

        Assert.Equal(202, ended);
        Assert.Contains($"{name} ({code})", errors, StringComparison.Ordinal);
        Assert.Matches("(of|after) (attend_|merge_states|clear_state|weigh|unweigh|fold_states)", errors);
        Assert.Contains("--device cpu", errors, StringComparison.Ordinal);
    }

    [Fact]
    public void A_missing_driver_ends_with_69_and_the_way_out()
    {
        (int code, string output, string errors) = Run(
            ["verify", "--device", "cuda", "--cases", "1"], ("TREEATTN_CUDA", "emulated"), ("TREEATTN_CUDA_LIBRARY", "/no/libcuda_emulated.so"));

        Assert.Equal(69, code);
        Assert.Empty(output);
        string line = Assert.Single(errors.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.Contains("/no/libcuda_emulated.so was not found", line, StringComparison.Ordinal);
        Assert.Contains("--device cpu", line, StringComparison.Ordinal);
    }

    [Fact]
    public void An_unknown_kind_of_gpu_in_the_environment_ends_with_2()
    {
        (int code, _, string errors) = Run(["verify", "--device", "cuda", "--cases", "1"], ("TREEATTN_CUDA", "imagined"));

        Assert.Equal(2, code);
        Assert.Contains("TREEATTN_CUDA is 'imagined'", errors, StringComparison.Ordinal);
    }

    private static (int Code, string Output, string Errors) Run(string[] arguments, params (string Name, string Value)[] variables)
    {
        string folder = Path.Combine(EmulatedCuda.Root, "artifacts", "bin", "TreeAttention.Cli");
        string configuration = Path.GetFileName(Path.TrimEndingDirectorySeparator(AppContext.BaseDirectory));
        string program = Directory.GetDirectories(folder, configuration + "*").Select(path => Path.Combine(path, "treeattn")).First(File.Exists);
        var start = new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true };
        foreach ((string name, string value) in variables)
        {
            start.Environment[name] = value;
        }

        using Process process = Process.Start(start)!;
        System.Threading.Tasks.Task<string> errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, output, errors.Result);
    }
}
