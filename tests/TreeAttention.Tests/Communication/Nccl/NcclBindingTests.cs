using System;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using TreeAttention.Interop.Nccl;
using TreeAttention.Testing.Devices;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary>The structures that are passed to NCCL, against the C compiler's view of the declarations.</summary>
public sealed class NcclBindingTests
{
    private static readonly Type[] _structs = [typeof(ncclUniqueId), typeof(ncclConfig_t)];

    [Fact]
    public void Every_struct_has_the_size_and_the_offsets_of_the_C_compiler()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/g++"), "g++ is not installed: there is no C compiler to ask.");

        string[] expected = [.. _structs.SelectMany(type => type.GetFields(BindingFlags.Instance | BindingFlags.Public)
            .Select(field => $"{type.Name}.{field.Name} {Marshal.OffsetOf(type, field.Name)}").Prepend($"{type.Name} {Marshal.SizeOf(type)}"))];
        string[] actual = AskCompiler();

        Assert.Equal(expected, actual);
        Assert.Contains("ncclUniqueId 128", actual);
    }

    [Fact]
    public void Settings_are_those_of_a_communicator_that_does_not_block()
    {
        ncclConfig_t config = NcclLibrary.NonblockingConfig();

        Assert.Equal((48, 0xcafebeefu, 0), ((int)config.size, config.magic, config.blocking));
        Assert.All([config.cgaClusterSize, config.minCTAs, config.maxCTAs, config.splitShare], setting => Assert.Equal(int.MinValue, setting));
    }

    [Theory, InlineData(21801, "2.18.1"), InlineData(22203, "2.22.3"), InlineData(23007, "2.30.7")]
    public void Versions_are_written_as_people_do(int version, string text) => Assert.Equal(text, NcclLibrary.Describe(version));

    private static string[] AskCompiler()
    {
        DirectoryInfo folder = Directory.CreateTempSubdirectory("treeattn-nccl-structs-");
        string source = Path.Combine(folder.FullName, "structs.cpp");
        string program = Path.Combine(folder.FullName, "structs");
        string lines = string.Concat(_structs.Select(type => $"std::printf(\"{type.Name} %zu\\n\", sizeof({type.Name}));"
            + string.Concat(type.GetFields(BindingFlags.Instance | BindingFlags.Public).Select(field =>
                $"std::printf(\"{type.Name}.{field.Name} %zu\\n\", offsetof({type.Name}, {field.Name}));"))));
        File.WriteAllText(source, $"#include <cstddef>\n#include <cstdio>\n#include \"nccl.h\"\nint main() {{ {lines} }}\n");
        using (var compiler = Process.Start("g++", ["-I", Path.Combine(EmulatedCuda.Root, "native/bindings/declarations"), source, "-o", program]))
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
}
