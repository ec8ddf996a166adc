using System.Runtime.InteropServices;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

/// <summary>What the driver answers, as faults the user can act on.</summary>
internal static unsafe class CudaFaults
{
    /// <summary>Throws unless the driver succeeded.</summary>
    /// <param name="result">What the driver answered.</param>
    /// <param name="action">What was attempted: <c>a launch of attend</c>.</param>
    /// <exception cref="FaultException">The device failed (202), in the driver's words.</exception>
    internal static void Check(CUresult result, string action)
    {
        if (result != CUresult.CUDA_SUCCESS)
        {
            throw Of(result, action);
        }
    }

    /// <summary>The fault of a driver call that failed.</summary>
    internal static FaultException Of(CUresult result, string action) => new(
        FaultCode.DeviceFault,
        $"The GPU failed in {action}: {NameOf(result)} ({(uint)result}), {TextOf(result)}. Its context is lost: start again; if it stays, "
        + "run with --device cpu.");

    /// <summary>The driver's name of an error.</summary>
    internal static string NameOf(CUresult result)
    {
        sbyte* text;
        return CudaDriver.cuGetErrorName(result, &text) == CUresult.CUDA_SUCCESS ? Marshal.PtrToStringUTF8((nint)text)! : "unknown error";
    }

    private static string TextOf(CUresult result)
    {
        sbyte* text;
        return CudaDriver.cuGetErrorString(result, &text) == CUresult.CUDA_SUCCESS ? Marshal.PtrToStringUTF8((nint)text)! : "no description";
    }
}
