using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.RegularExpressions;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Interop.Cuda;
using TreeAttention.Interop.Nccl;
using Xunit;

namespace TreeAttention.Tests.Cuda;

/// <summary>The declarations of the driver, the compiler and the kernels' structs against those who define them.</summary>
[Collection(EmulatedGpu.Name)]
public sealed partial class CudaBindingTests
{
    private static readonly Dictionary<string, Type> _structs = new()
    {
        ["page_entry"] = typeof(PageEntry),
        ["attend_arguments"] = typeof(AttendArguments),
        ["precise_arguments"] = typeof(PreciseArguments),
        ["token_place"] = typeof(TokenEntry),
        ["append_arguments"] = typeof(AppendArguments),
        ["rotate_arguments"] = typeof(RotateArguments),
        ["merge_arguments"] = typeof(MergeArguments),
        ["fold_step"] = typeof(StateFold),
        ["fold_arguments"] = typeof(FoldArguments),
        ["weigh_arguments"] = typeof(WeighArguments),
        ["unweigh_arguments"] = typeof(UnweighArguments),
        ["clear_arguments"] = typeof(ClearArguments),
        ["finish_arguments"] = typeof(FinishArguments),
        ["convert_arguments"] = typeof(ConvertArguments),
        ["probe_arguments"] = typeof(ProbeArguments),
        ["ceiling_arguments"] = typeof(CeilingArguments),
    };

    [Fact]
    public void Every_kernel_struct_has_the_size_and_the_offsets_of_the_C_compiler()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/g++"), "g++ is not installed: there is no C compiler to ask.");

        string[] expected = [.. _structs.SelectMany(one => Fields(one.Value).Select(field => $"{one.Key}.{CName(field.Name)} {Marshal.OffsetOf(one.Value, field.Name)}")
            .Prepend($"{one.Key} {Marshal.SizeOf(one.Value)}"))];
        string[] actual = AskCompiler();

        Assert.Equal(expected, actual);
    }

    [Fact]
    public void The_emulated_driver_exports_every_function_that_is_declared()
    {
        EmulatedCuda.RequireLibrary();
        nint library = NativeLibrary.Load(EmulatedCuda.Library);
        Type[] bindings = [typeof(CudaDriver), typeof(Nvrtc), typeof(NcclNative)];

        string[] missing = [.. bindings
            .SelectMany(type => type.GetMethods(BindingFlags.Public | BindingFlags.Static).Select(method => method.Name))
            .Where(name => !NativeLibrary.TryGetExport(library, name, out _))];

        Assert.Empty(missing);
    }

    [Fact]
    public void The_committed_bindings_are_those_that_the_generator_writes()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/castxml"), "castxml is not installed: the bindings cannot be generated again.");
        var start = new ProcessStartInfo(Path.Combine(EmulatedCuda.Root, "native/bindings/regenerate.sh"), "--check")
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };

        using Process process = Process.Start(start)!;
        string said = process.StandardOutput.ReadToEnd() + process.StandardError.ReadToEnd();
        process.WaitForExit();

        Assert.True(process.ExitCode == 0, said);
    }

    private static FieldInfo[] Fields(Type type) =>
        [.. type.GetFields(BindingFlags.Instance | BindingFlags.NonPublic).Where(field => !field.Name.StartsWith("Unused", StringComparison.Ordinal))];

    private static string CName(string name) => WordStart().Replace(name, "_$0").ToLowerInvariant();

    private static string[] AskCompiler()
    {
        DirectoryInfo folder = Directory.CreateTempSubdirectory("treeattn-structs-");
        string source = Path.Combine(folder.FullName, "structs.cpp");
        string program = Path.Combine(folder.FullName, "structs");
        string lines = string.Concat(_structs.Select(one => $"std::printf(\"{one.Key} %zu\\n\", sizeof({one.Key}));"
            + string.Concat(Fields(one.Value).Select(field => CName(field.Name))
                .Select(field => $"std::printf(\"{one.Key}.{field} %zu\\n\", offsetof({one.Key}, {field}));"))));
        File.WriteAllText(source, $"#include <cstddef>\n#include <cstdio>\n#include \"arguments.cuh\"\nint main() {{ {lines} }}\n");
        using (var compiler = Process.Start("g++", ["-I", Path.Combine(EmulatedCuda.Root, "native/kernels"), source, "-o", program]))
        {
            compiler.WaitForExit();
            Assert.Equal(0, compiler.ExitCode);
        }

        using Process asked = Process.Start(new ProcessStartInfo(program) { RedirectStandardOutput = true })!;
        string told = asked.StandardOutput.ReadToEnd();
        asked.WaitForExit();
        folder.Delete(recursive: true);
        return told.Split('\n', StringSplitOptions.RemoveEmptyEntries);
    }

    [GeneratedRegex("(?<!^)[A-Z]")]
    private static partial Regex WordStart();
}
