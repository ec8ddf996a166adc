using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.InteropServices;
using System.Text;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

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
            $"NVRTC {Version} does not know GPUs of compute capability {architecture / 10}.{architecture % 10}. Install a newer NVRTC, or run with --device cpu.");
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
        + $"Report this; until then run with --device cpu.\n{log}");

    private static void Check(nvrtcResult result, string action)
    {
        if (result != nvrtcResult.NVRTC_SUCCESS)
        {
            throw new FaultException(FaultCode.Bug, $"NVRTC failed in {action}: {TextOf(result)}. Report this; until then run with --device cpu.");
        }
    }

    private static string TextOf(nvrtcResult result) => Marshal.PtrToStringUTF8((nint)Nvrtc.nvrtcGetErrorString(result)) ?? "unknown error";
}
