using System;
using System.Threading;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Runtime;

/// <summary>The end of a process that a signal asked to go, while its ranks are at work.</summary>
public static class ProcessEnd
{
    // Launchers kill about a second after the signal; an MPI that has lost its launcher may hang in its abort.
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(0.5);

    /// <summary>Removes unfinished files and ends the process, and with it the MPI job that it is a rank of. Does not return.</summary>
    public static void Leave(FaultCode code)
    {
        UnfinishedFiles.Discard();
        var guard = new Thread(() =>
        {
            Thread.Sleep(_limit);
            LibC.ExitNow((int)code);
        })
        { IsBackground = true, Name = "end guard" };
        guard.Start();
        Environment.Exit((int)code);
    }
}
