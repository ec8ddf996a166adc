using System;
using System.Diagnostics;
using TreeAttention.Distributed.Faults;

namespace TreeAttention;

/// <summary>A fault the user can act on. The message says what failed, the values that disagree, the rule, the way out.</summary>
[DebuggerDisplay("{Code} ({(int)Code,nq}), rank {Rank}: {Message,nq}")]
public sealed class FaultException : Exception
{
    /// <summary>A fault of this kind with a message that stands alone.</summary>
    public FaultException(FaultCode code, string message, Exception? inner = null)
        : base(message, inner) => Code = code;

    /// <summary>The kind of fault.</summary>
    public FaultCode Code { get; }

    /// <summary>The rank that failed or found the fault; null when it is not one rank's.</summary>
    public int? Rank { get; init; }

    /// <summary>Every rank throws this same fault, so that all can leave in order with the same code.</summary>
    public bool IsAgreed { get; init; }

    /// <summary>The fault of a host that had no memory left.</summary>
    internal static FaultException OfHostMemory(OutOfMemoryException error) => new(
        FaultCode.OutOfMemory,
        $"This does not fit in the memory of the host. Use more ranks on more nodes, a smaller {Setting.StorageType}, a shorter context, or fewer layers or rows.",
        error);
}

/// <summary>Two things that must agree in shape do not, or a shape describes no attention call.</summary>
[DebuggerDisplay("{Message,nq}")]
public sealed class ShapeMismatchException : ArgumentException
{
    private readonly string _message;

    /// <summary>A mismatch with a message that stands alone.</summary>
    /// <param name="message">What disagrees, and the rule.</param>
    /// <param name="parameter">The parameter that has it, where it is one.</param>
    public ShapeMismatchException(string message, string? parameter = null)
        : base(message, parameter) => _message = message;

    /// <inheritdoc/>
    public override string Message => _message;
}
