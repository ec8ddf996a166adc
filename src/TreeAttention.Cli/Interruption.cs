using System;
using System.Runtime.InteropServices;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>SIGINT and SIGTERM end the process at once with 130 and 143, and leave no half-written file.</summary>
/// <remarks>Launchers give about a second from the signal to the kill, so nothing is waited for; under MPI leaving this way ends all ranks.</remarks>
internal sealed class Interruption : IDisposable
{
    private readonly PosixSignalRegistration _interrupt;
    private readonly PosixSignalRegistration _terminate;
    private volatile int _told;

    /// <summary>Listens from now on.</summary>
    /// <param name="speaks">Say what happened; one rank does.</param>
    public Interruption(bool speaks)
    {
        _interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, context => End(context, Told ?? FaultCode.Interrupted, speaks && Told is null));
        _terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, context => End(context, Told ?? FaultCode.Terminated, speaks && Told is null));
    }

    private FaultCode? Told => _told == 0 ? null : (FaultCode)_told;

    /// <summary>The fault that ends this process has been told: a launcher that ends the other ranks for it is nothing new.</summary>
    public void EndsWith(FaultCode code) => _told = (int)code;

    /// <inheritdoc/>
    public void Dispose()
    {
        _interrupt.Dispose();
        _terminate.Dispose();
    }

    private static void End(PosixSignalContext context, FaultCode code, bool speaks)
    {
        context.Cancel = true;
        if (speaks)
        {
            Terminal.Error.WriteLine($"treeattn: stopped by {context.Signal}; finished rows are kept and no file is left half-written.");
        }

        ProcessEnd.Leave(code);
    }
}
