using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.RegularExpressions;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Interop.Cuda;
using TreeAttention.Interop.Nccl;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>The declarations of the driver, the compiler and the kernels' structs against those who define them.</summary>
[Collection(EmulatedGpu.Name)]
public sealed partial class CudaBindingTests
{
    private static readonly Dictionary<string, Type> _structs = ReadStructs();

    [Fact]
    public void Every_kernel_struct_has_the_size_and_the_offsets_of_the_C_compiler()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/g++"), "g++ is not installed: there is no C compiler to ask.");

        string[] expected = [.. _structs.SelectMany(one => Fields(one.Value).Select(field => $"{one.Key}.{CName(field.Name)} {Marshal.OffsetOf(one.Value, field.Name)}")
            .Prepend($"{one.Key} {Marshal.SizeOf(one.Value)}"))];
        string[] actual = AskCompiler(_structs.ToDictionary(one => one.Key, one => Fields(one.Value).Select(field => CName(field.Name)).ToArray()));

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

    [Fact]
    public void A_place_of_a_packed_query_is_copied_to_kernels_as_it_lies()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/g++"), "g++ is not installed: there is no C compiler to ask.");
        var place = new QueryPlace(First: 0, End: 4, Position: 8, Sequence: 12); // each number is the offset of its field

        string[] offsets = ["query_place 16", .. MemoryMarshal.Cast<QueryPlace, int>([place]).ToArray()
            .Zip(["first", "end", "position", "sequence"], (offset, field) => $"query_place.{field} {offset}")];

        Assert.Equal(offsets, AskCompiler(new Dictionary<string, string[]> { ["query_place"] = ["first", "end", "position", "sequence"] }));
    }

    // native/bindings/kernels.rsp: the structs by their names in C, and those that have another name in C#.
    private static Dictionary<string, Type> ReadStructs()
    {
        string[] lines = File.ReadAllLines(Path.Combine(EmulatedCuda.Root, "native/bindings/kernels.rsp"));
        var renamed = lines.Where(line => line.Contains('=', StringComparison.Ordinal)).Select(line => line.Split('='))
            .ToDictionary(pair => pair[0], pair => pair[1]);
        return lines.SkipWhile(line => line != "--include").Skip(1).ToDictionary(name => name, name => TypeOf(renamed.GetValueOrDefault(name, CSharpName(name))));
    }

    private static Type TypeOf(string name) => typeof(AttendArguments).Assembly.GetType($"{typeof(AttendArguments).Namespace}.{name}", throwOnError: true)!;

    private static string CSharpName(string name) => string.Concat(name.Split('_').Select(word => char.ToUpperInvariant(word[0]) + word[1..]));

    private static FieldInfo[] Fields(Type type) =>
        [.. type.GetFields(BindingFlags.Instance | BindingFlags.NonPublic).Where(field => !field.Name.StartsWith("Unused", StringComparison.Ordinal))];

    private static string CName(string name) => WordStart().Replace(name, "_$0").ToLowerInvariant();

    private static string[] AskCompiler(Dictionary<string, string[]> structs)
    {
        DirectoryInfo folder = Directory.CreateTempSubdirectory("treeattn-structs-");
        string source = Path.Combine(folder.FullName, "structs.cpp");
        string program = Path.Combine(folder.FullName, "structs");
        string lines = string.Concat(structs.Select(one => $"std::printf(\"{one.Key} %zu\\n\", sizeof({one.Key}));"
            + string.Concat(one.Value.Select(field => $"std::printf(\"{one.Key}.{field} %zu\\n\", offsetof({one.Key}, {field}));"))));
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
