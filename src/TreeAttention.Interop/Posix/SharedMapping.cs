using System;
using System.IO;
using System.Runtime.InteropServices;
using System.Threading;

namespace TreeAttention.Interop.Posix;

/// <summary>A stretch of zeroed memory that several processes of one machine see: a mapped file that only its owner may open.</summary>
/// <remarks>The name is removed as soon as every process has mapped it; the memory lives until the last one unmaps or dies.</remarks>
internal sealed class SharedMapping : IDisposable
{
    private readonly nuint _bytes;
    private nint _address;

    private SharedMapping(nint address, long bytes)
    {
        _address = address;
        _bytes = (nuint)bytes;
    }

    ~SharedMapping() => Unmap();

    /// <summary>First byte; on a page boundary.</summary>
    internal nint Address => _address;

    /// <summary>Creates a file of a new name, in memory where the machine has a memory file system.</summary>
    /// <exception cref="IOException">No folder takes a file of this length.</exception>
    internal static SharedMapping Create(long bytes, out string path)
    {
        string name = $"treeattn-{Environment.ProcessId}-{Guid.NewGuid():N}";
        IOException? failure = null;
        foreach (string folder in (string[])["/dev/shm", Path.GetTempPath()])
        {
            path = Path.Combine(folder, name);
            try
            {
                return Open(path, bytes, create: true);
            }
            catch (IOException error)
            {
                failure = error;
            }
        }

        throw failure!;
    }

    /// <summary>Maps the file that another process created.</summary>
    /// <exception cref="IOException">There is no such file here, or it cannot be mapped.</exception>
    internal static SharedMapping Attach(string path, long bytes) => Open(path, bytes, create: false);

    /// <summary>Removes the name; the mappings stay.</summary>
    internal static void Remove(string path) => LibC.RemoveFile(path);

    public void Dispose()
    {
        Unmap();
        GC.SuppressFinalize(this);
    }

    private static SharedMapping Open(string path, long bytes, bool create)
    {
        int flags = LibC.OpenReadWrite | LibC.OpenCloseOnExec | (create ? LibC.OpenCreate | LibC.OpenExclusive : 0);
        int descriptor = LibC.OpenFile(path, flags, LibC.OwnerReadWrite);
        if (descriptor < 0)
        {
            throw Failure("opened", path, Marshal.GetLastPInvokeError());
        }

        try
        {
            int error = create ? LibC.ReserveFile(descriptor, 0, bytes) : 0;
            if (error != 0)
            {
                LibC.RemoveFile(path);
                throw Failure($"made {bytes:N0} bytes long", path, error);
            }

            nint address = LibC.Map(0, (nuint)bytes, LibC.ProtectReadWrite, LibC.MapShared | LibC.MapPopulate, descriptor, 0);
            return address != -1 ? new SharedMapping(address, bytes) : throw Failure("mapped", path, Marshal.GetLastPInvokeError());
        }
        finally
        {
            LibC.CloseFile(descriptor);
        }
    }

    private static IOException Failure(string what, string path, int error) =>
        new($"{path} could not be {what}: {Marshal.GetPInvokeErrorMessage(error)}.");

    private void Unmap()
    {
        nint address = Interlocked.Exchange(ref _address, 0);
        if (address != 0)
        {
            LibC.Unmap(address, _bytes);
        }
    }
}
