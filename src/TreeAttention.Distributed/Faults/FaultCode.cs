namespace TreeAttention;

/// <summary>What kind of fault ended the work; also the exit code of the process. Codes from 128 on may be retried.</summary>
public enum FaultCode
{
    /// <summary>None: done and, where asked, verified.</summary>
    None = 0,

    /// <summary>It ran, but numbers lie outside the stated tolerance.</summary>
    OutsideTolerance = 1,

    /// <summary>A setting is wrong, or two contradict each other: an option of a call, a flag of the command line, a variable of the environment.</summary>
    CommandLine = 2,

    /// <summary>An input is bad: a header, a dtype, a shape, a NaN.</summary>
    BadInput = 65,

    /// <summary>An input file is missing or cannot be read.</summary>
    MissingInput = 66,

    /// <summary>A needed part of the system is missing: GPU, driver, NVRTC, NCCL, MPI.</summary>
    Unavailable = 69,

    /// <summary>A bug of this software.</summary>
    Bug = 70,

    /// <summary>It does not fit in memory.</summary>
    OutOfMemory = 71,

    /// <summary>An output cannot be created.</summary>
    CannotCreate = 73,

    /// <summary>Reading or writing failed half-way; the disk is full.</summary>
    InputOutput = 74,

    /// <summary>The ranks disagree on arguments, versions, world size or input.</summary>
    RanksDisagree = 78,

    /// <summary>SIGINT.</summary>
    Interrupted = 130,

    /// <summary>SIGTERM.</summary>
    Terminated = 143,

    /// <summary>Another rank is gone.</summary>
    PeerLost = 200,

    /// <summary>A rank made no progress within the stall time-out.</summary>
    NoProgress = 201,

    /// <summary>A device failed for good.</summary>
    DeviceFault = 202,

    /// <summary>A communication library failed.</summary>
    CommunicationFault = 203,
}
