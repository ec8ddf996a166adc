using System;
using System.IO;
using System.Runtime.InteropServices;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Runtime.Files;

/// <summary>Standard output or error of this process, written as it is: no escape codes, and no surprise when it is closed or full.</summary>
/// <remarks>
/// The first failure is told once, by the exception; whatever is written afterwards is dropped, so that a report about the failure cannot
/// fail in its turn. Of standard error nothing is told at all: there is nowhere to tell it.
/// </remarks>
internal sealed unsafe class StandardStream : Stream
{
    private const int Descriptors = 3;
    private static readonly bool[] _isClosed = new bool[Descriptors];

    private readonly int _descriptor;
    private bool _isBroken;

    private StandardStream(int descriptor) => _descriptor = descriptor;

    /// <summary>Standard output. A write that fails is a fault (74).</summary>
    public static StandardStream Output { get; } = new(1);

    /// <summary>Standard error. A write that fails is lost.</summary>
    public static StandardStream Error { get; } = new(2);

    /// <summary>Standard error is a terminal: what is written is looked at by a person.</summary>
    public static bool IsErrorTerminal => !_isClosed[2] && LibC.IsTerminal(2) == 1;

    /// <inheritdoc/>
    public override bool CanRead => false;

    /// <inheritdoc/>
    public override bool CanSeek => false;

    /// <inheritdoc/>
    public override bool CanWrite => true;

    /// <inheritdoc/>
    public override long Length => throw new NotSupportedException();

    /// <inheritdoc/>
    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <summary>
    /// Takes the places of standard streams that the caller closed, before any file of this process gets their numbers: output would
    /// be written into it. The first thing that a program does.
    /// </summary>
    public static void Reserve()
    {
        for (int descriptor = 0; descriptor < Descriptors; descriptor++)
        {
            int flags = LibC.Control(descriptor, LibC.GetDescriptorFlags);

            // What is closed on exec was not inherited: the runtime has opened it here, in a place that was free.
            _isClosed[descriptor] = flags < 0 || (flags & LibC.CloseOnExec) != 0;
            if (flags < 0)
            {
                _ = LibC.OpenFile("/dev/null", LibC.OpenReadWrite, 0);
            }
        }
    }

    /// <inheritdoc/>
    public override void Write(ReadOnlySpan<byte> buffer)
    {
        if (_isBroken)
        {
            return;
        }

        if (_isClosed[_descriptor])
        {
            Fail("it is closed");
            return;
        }

        fixed (byte* bytes = buffer)
        {
            for (int written = 0; written < buffer.Length;)
            {
                nint count = LibC.Write(_descriptor, bytes + written, (nuint)(buffer.Length - written));
                if (count >= 0)
                {
                    written += (int)count;
                }
                else if (!IsPassing(Marshal.GetLastPInvokeError()))
                {
                    Fail(Marshal.GetLastPInvokeErrorMessage());
                    return;
                }
            }
        }
    }

    /// <inheritdoc/>
    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

    /// <inheritdoc/>
    public override void Flush()
    {
    }

    /// <inheritdoc/>
    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override void SetLength(long value) => throw new NotSupportedException();

    // A launcher may hand on a pipe that does not wait: the reader is slow, not gone.
    private static bool IsPassing(int error)
    {
        if (error == LibC.TryAgain)
        {
            System.Threading.Thread.Sleep(1);
        }

        return error is LibC.Interrupted or LibC.TryAgain;
    }

    private void Fail(string reason)
    {
        _isBroken = true;
        if (_descriptor == 1)
        {
            throw new FaultException(
                FaultCode.InputOutput,
                $"Standard output cannot be written: {reason.ToLowerInvariant()}. What this run was to print is lost; send it to a file with room, or to /dev/null.");
        }
    }
}
