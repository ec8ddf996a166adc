using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;
using TreeAttention.Distributed.Faults;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda.Kernels;

/// <summary>NVRTC for one GPU architecture.</summary>
/// <param name="architecture">Compute capability: 90 is 9.0.</param>
internal sealed unsafe class KernelCompiler(int architecture)
{
    // What an older compiler knows of a newer GPU: PTX that the driver translates.
    private static readonly int[] _virtualArchitectures = [90, 80];

    /// <summary>The compiler's version: <c>12.4</c>.</summary>
    internal static string Version
    {
        get
        {
            int major;
            int minor;
            Check(Nvrtc.nvrtcVersion(&major, &minor), "asking for its version");
            return $"{major}.{minor}";
        }
    }

    /// <summary>Options that decide what a program becomes, beside its text.</summary>
    internal IReadOnlyList<string> OptionsFor(KernelProgram program) => Options(program, $"sm_{architecture}");

    /// <summary>Compiles to a CUBIN, or to PTX where the compiler does not know the GPU yet.</summary>
    /// <exception cref="FaultException">The compiler refuses the program (70): its own words are in the message.</exception>
    internal CompiledProgram Compile(KernelProgram program)
    {
        if (TryCompile(program, $"sm_{architecture}", isVirtual: false) is { } compiled)
        {
            return compiled;
        }

        foreach (int older in _virtualArchitectures.Where(older => older < architecture))
        {
            if (TryCompile(program, $"compute_{older}", isVirtual: true) is { } portable)
            {
                return portable;
            }
        }

        throw new FaultException(
            FaultCode.Unavailable,
            $"NVRTC {Version} does not know GPUs of compute capability {architecture / 10}.{architecture % 10}. Install a newer NVRTC, or run with {Setting.DeviceCpu}.");
    }

    private static string[] Options(KernelProgram program, string target) =>
        [$"--gpu-architecture={target}", "--std=c++17", .. program.FusesMultiplyAdd ? Array.Empty<string>() : ["--fmad=false"]];

    // Null: the compiler does not know the target.
    private static CompiledProgram? TryCompile(KernelProgram program, string target, bool isVirtual)
    {
        using var source = new NativeTexts([KernelSources.Source(program.File), program.File]);
        using var headerNames = new NativeTexts([.. KernelSources.Headers.Keys]);
        using var headers = new NativeTexts([.. KernelSources.Headers.Values]);
        using var expressions = new NativeTexts(program.Expressions);
        string[] chosen = Options(program, target);
        using var options = new NativeTexts(chosen);
        nint handle;
        Check(
            Nvrtc.nvrtcCreateProgram(
                &handle, source.Pointers[0], source.Pointers[1], KernelSources.Headers.Count, headers.Pointers, headerNames.Pointers),
            $"reading {program.File}");
        try
        {
            for (int i = 0; i < program.Expressions.Count; i++)
            {
                Check(Nvrtc.nvrtcAddNameExpression(handle, expressions.Pointers[i]), $"taking {program.Expressions[i]}");
            }

            nvrtcResult result = Nvrtc.nvrtcCompileProgram(handle, chosen.Length, options.Pointers);
            if (result == nvrtcResult.NVRTC_ERROR_INVALID_OPTION)
            {
                return null;
            }

            if (result != nvrtcResult.NVRTC_SUCCESS)
            {
                throw Refusal(program, target, result, Log(handle));
            }

            return new CompiledProgram(isVirtual ? Ptx(handle) : Cubin(handle), LoweredNames(handle, program, expressions));
        }
        finally
        {
            _ = Nvrtc.nvrtcDestroyProgram(&handle);
        }
    }

    private static string[] LoweredNames(nint program, KernelProgram asked, NativeTexts expressions)
    {
        string[] names = new string[asked.Expressions.Count];
        for (int i = 0; i < names.Length; i++)
        {
            sbyte* name;
            Check(Nvrtc.nvrtcGetLoweredName(program, expressions.Pointers[i], &name), $"naming {asked.Expressions[i]}");
            names[i] = Marshal.PtrToStringUTF8((nint)name)!;
        }

        return names;
    }

    private static byte[] Cubin(nint program)
    {
        nuint bytes;
        Check(Nvrtc.nvrtcGetCUBINSize(program, &bytes), "giving the CUBIN");
        byte[] image = new byte[bytes];
        fixed (byte* address = image)
        {
            Check(Nvrtc.nvrtcGetCUBIN(program, (sbyte*)address), "giving the CUBIN");
        }

        return image;
    }

    private static byte[] Ptx(nint program)
    {
        nuint bytes;
        Check(Nvrtc.nvrtcGetPTXSize(program, &bytes), "giving the PTX");
        byte[] image = new byte[bytes];
        fixed (byte* address = image)
        {
            Check(Nvrtc.nvrtcGetPTX(program, (sbyte*)address), "giving the PTX");
        }

        return image;
    }

    private static string Log(nint program)
    {
        nuint bytes;
        Check(Nvrtc.nvrtcGetProgramLogSize(program, &bytes), "giving its log");
        byte[] log = new byte[bytes];
        fixed (byte* address = log)
        {
            Check(Nvrtc.nvrtcGetProgramLog(program, (sbyte*)address), "giving its log");
        }

        return Encoding.UTF8.GetString(log).TrimEnd('\0', '\n');
    }

    private static FaultException Refusal(KernelProgram program, string target, nvrtcResult result, string log) => new(
        FaultCode.Bug,
        $"The kernels {string.Join(", ", program.Expressions)} of {program.File} were not compiled for {target}: {TextOf(result)}. "
        + $"Report this; until then run with {Setting.DeviceCpu}.\n{log}");

    private static void Check(nvrtcResult result, string action)
    {
        if (result != nvrtcResult.NVRTC_SUCCESS)
        {
            throw new FaultException(FaultCode.Bug, $"NVRTC failed in {action}: {TextOf(result)}. Report this; until then run with {Setting.DeviceCpu}.");
        }
    }

    private static string TextOf(nvrtcResult result) => Marshal.PtrToStringUTF8((nint)Nvrtc.nvrtcGetErrorString(result)) ?? "unknown error";
}

/// <summary>What is compiled together: one source file and the kernels that are wanted of it.</summary>
/// <param name="File">The source's name: <c>states.cu</c>.</param>
/// <param name="Expressions">The kernels as C++ names them: <c>attend_plain&lt;float, 128&gt;</c>.</param>
/// <param name="FusesMultiplyAdd">The compiler may contract a product and a sum into one rounding.</param>
internal sealed record KernelProgram(string File, IReadOnlyList<string> Expressions, bool FusesMultiplyAdd);

/// <summary>What a compiler made of a program.</summary>
/// <param name="Image">A CUBIN, or PTX that ends in a NUL.</param>
/// <param name="Names">The name of each expression inside the image.</param>
internal sealed record CompiledProgram(byte[] Image, IReadOnlyList<string> Names);

/// <summary>The kernels' sources and headers, as they lie in this assembly.</summary>
internal static class KernelSources
{
    private const string Prefix = "kernels/";

    /// <summary>Text of each header by the name that sources include it with.</summary>
    internal static IReadOnlyDictionary<string, string> Headers { get; } = Read(".cuh");

    private static readonly Dictionary<string, string> _sources = Read(".cu");

    /// <summary>Text of a source.</summary>
    internal static string Source(string file) => _sources[file];

    private static Dictionary<string, string> Read(string extension)
    {
        Assembly assembly = typeof(KernelSources).Assembly;
        var files = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (string name in assembly.GetManifestResourceNames()
            .Where(name => name.StartsWith(Prefix, StringComparison.Ordinal) && Path.GetExtension(name) == extension))
        {
            using var reader = new StreamReader(assembly.GetManifestResourceStream(name)!);
            files.Add(Path.GetFileName(name), reader.ReadToEnd());
        }

        return files;
    }
}

/// <summary>Texts as C reads them: an array of pointers to NUL-terminated UTF-8.</summary>
internal sealed unsafe class NativeTexts : IDisposable
{
    private readonly int _count;
    private sbyte** _texts;

    internal NativeTexts(IReadOnlyList<string> texts)
    {
        _count = texts.Count;
        _texts = (sbyte**)NativeMemory.Alloc((nuint)Math.Max(1, _count), (nuint)sizeof(sbyte*));
        for (int i = 0; i < _count; i++)
        {
            _texts[i] = (sbyte*)Marshal.StringToCoTaskMemUTF8(texts[i]);
        }
    }

    /// <summary>The array.</summary>
    internal sbyte** Pointers => _texts;

    public void Dispose()
    {
        if (_texts != null)
        {
            for (int i = 0; i < _count; i++)
            {
                Marshal.FreeCoTaskMem((nint)_texts[i]);
            }

            NativeMemory.Free(_texts);
            _texts = null;
        }
    }
}
