using System;
using System.Collections.Generic;

namespace TreeAttention.Runtime;

/// <summary>What one rank made, one thing over the other: disposed of in the opposite order.</summary>
internal sealed class OwnedParts : IDisposable
{
    private readonly Stack<IDisposable> _parts = [];

    /// <summary>Makes a part.</summary>
    internal T Add<T>(Func<T> make)
        where T : class, IDisposable
    {
        T part = make();
        _parts.Push(part);
        return part;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        while (_parts.TryPop(out IDisposable? part))
        {
            part.Dispose();
        }
    }
}
