using System;
using System.Collections.Generic;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda.Kernels;

/// <summary>The kernels of one device, loaded when they are first asked for.</summary>
internal sealed unsafe class KernelFunctions(CudaContext context, KernelCache cache) : IDisposable
{
    private const int SharedWithoutAsking = 48 << 10;

    private readonly Dictionary<KernelProgram, nint[]> _functions = new(ReferenceEqualityComparer.Instance);
    private readonly List<nint> _modules = [];
    private readonly Dictionary<nint, int> _sharedBytes = [];

    /// <summary>Kernels that the host enqueued one by one.</summary>
    internal long Launches { get; private set; }

    /// <summary>A kernel of a program, allowed so much dynamic shared memory.</summary>
    /// <param name="program">The same object each time.</param>
    /// <param name="index">Which of its expressions.</param>
    /// <param name="sharedBytes">Dynamic shared memory of a launch.</param>
    /// <exception cref="FaultException">It cannot be compiled (69, 70) or loaded (202).</exception>
    internal nint Get(KernelProgram program, int index, int sharedBytes)
    {
        if (!_functions.TryGetValue(program, out nint[]? functions))
        {
            functions = Load(program);
            _functions.Add(program, functions);
        }

        nint function = functions[index];
        if (sharedBytes > SharedWithoutAsking && _sharedBytes.GetValueOrDefault(function) < sharedBytes)
        {
            CudaFaults.Check(
                CudaDriver.cuFuncSetAttribute(function, CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, sharedBytes),
                "asking for shared memory");
            _sharedBytes[function] = sharedBytes;
        }

        return function;
    }

    /// <summary>Enqueues a kernel.</summary>
    /// <param name="function">What <see cref="Get"/> gave.</param>
    /// <param name="grid">Blocks.</param>
    /// <param name="threads">Threads of a block.</param>
    /// <param name="sharedBytes">Dynamic shared memory of a block.</param>
    /// <param name="arguments">The one parameter; copied before this returns.</param>
    /// <param name="name">What messages call the launch.</param>
    internal void Launch<T>(nint function, (int X, int Y, int Z) grid, int threads, int sharedBytes, in T arguments, string name)
        where T : unmanaged
    {
        Launches++;
        T copy = arguments;
        void* parameter = &copy;
        CUresult result = CudaDriver.cuLaunchKernel(
            function, (uint)grid.X, (uint)grid.Y, (uint)grid.Z, (uint)threads, 1, 1, (uint)sharedBytes, context.Stream, &parameter, null);
        if (result != CUresult.CUDA_SUCCESS)
        {
            throw CudaFaults.Of(result, $"a launch of {name}");
        }

        context.LastLaunch = name;
    }

    public void Dispose()
    {
        foreach (nint module in _modules)
        {
            _ = CudaDriver.cuModuleUnload(module);
        }

        _modules.Clear();
        _functions.Clear();
    }

    private nint[] Load(KernelProgram program)
    {
        context.RefuseWhileCapturing("Loading a kernel");
        CompiledProgram compiled = cache.Get(program);
        nint module;
        CUresult result = LoadImage(compiled, &module);
        if (result is CUresult.CUDA_ERROR_INVALID_IMAGE or CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU or CUresult.CUDA_ERROR_INVALID_PTX)
        {
            compiled = cache.Renew(program);
            result = LoadImage(compiled, &module);
        }

        CudaFaults.Check(result, $"loading {program.File}");
        _modules.Add(module);
        nint[] functions = new nint[compiled.Names.Count];
        for (int i = 0; i < functions.Length; i++)
        {
            using var name = new NativeTexts([compiled.Names[i]]);
            nint function;
            CudaFaults.Check(CudaDriver.cuModuleGetFunction(&function, module, name.Pointers[0]), $"finding {program.Expressions[i]}");
            functions[i] = function;
        }

        return functions;
    }

    private static CUresult LoadImage(CompiledProgram compiled, nint* module)
    {
        fixed (byte* image = compiled.Image)
        {
            return CudaDriver.cuModuleLoadData(module, image);
        }
    }
}
