namespace TreeAttention.Communication;

/// <summary>What travels on the control plane: four bytes of length, one byte of kind, then the payload.</summary>
internal enum ControlFrame : byte
{
    /// <summary>First of a connection: token, rank, process, host.</summary>
    Hello = 1,

    /// <summary>Operations entered, milliseconds in this state, name of the operation.</summary>
    Beat,

    /// <summary>One rank's part of an agreement: number of the agreement, bytes.</summary>
    Part,

    /// <summary>All parts: number of the agreement, then each part with its length.</summary>
    Parts,

    /// <summary>A fault: code, reason. The group ends.</summary>
    Abort,

    /// <summary>The end of this connection is no fault.</summary>
    Goodbye,
}
