using System;
using System.Threading;

namespace TreeAttention.Communication;

/// <summary>The end of a library that may hang: done in time, or left.</summary>
internal static class BoundedTeardown
{
    /// <summary>Runs <paramref name="teardown"/> on the calling thread; calls <paramref name="stuck"/> on another when it takes longer than <paramref name="limit"/>.</summary>
    internal static void Run(Action teardown, TimeSpan limit, Action stuck)
    {
        using var done = new ManualResetEventSlim();
        var guard = new Thread(() =>
        {
            if (!done.Wait(limit))
            {
                stuck();
            }
        })
        { IsBackground = true, Name = "teardown guard" };
        guard.Start();
        try
        {
            teardown();
        }
        finally
        {
            done.Set();
            guard.Join();
        }
    }
}
