using System;
using System.Runtime.InteropServices;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

/// <summary>How a window is reached: by its addresses in the process that made it, by IPC handles in others.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct PeerTicket
{
    /// <summary>Drawn by the process that made the window: process ids repeat over containers.</summary>
    internal Guid Process;

    internal nint Context;
    internal nint Memory;
    internal fixed long Events[2];
    internal CUipcMemHandle MemoryHandle;
    internal CUipcEventHandle FirstEvent;
    internal CUipcEventHandle SecondEvent;

    /// <summary>Why there are no IPC handles; 0 when there are.</summary>
    internal CUresult Refused;
}
