using System;
using System.Collections.Generic;
using System.IO;
using System.Threading;

namespace TreeAttention.Runtime.Files;

/// <summary>The temporary files of outputs that are being written in this process: what a signal must not leave behind.</summary>
internal static class UnfinishedFiles
{
    private static readonly Lock _gate = new();
    private static readonly HashSet<string> _paths = [];
    private static bool _discarded;

    /// <summary>Removes every unfinished file; from now on none begins and none is put in its place. For a process that ends.</summary>
    public static void Discard()
    {
        lock (_gate)
        {
            _discarded = true;
            foreach (string path in _paths)
            {
                try
                {
                    File.Delete(path);
                }
                catch (Exception error) when (error is IOException or UnauthorizedAccessException)
                {
                    // The process is ending for another reason; the others must still go.
                }
            }
        }
    }

    /// <summary>Does something to a file's existence, and knows it from now on; never returns once all are discarded.</summary>
    internal static T Begin<T>(string path, Func<T> create) => WhileWanted(() =>
    {
        T created = create();
        _paths.Add(path);
        return created;
    });

    /// <summary>Renames or removes a file, and forgets it; never returns once all are discarded.</summary>
    internal static void End(string path, Action finish) => WhileWanted(() =>
    {
        finish();
        return _paths.Remove(path);
    });

    // The thread that discards ends the process; the one that writes has nothing left to say.
    private static T WhileWanted<T>(Func<T> work)
    {
        lock (_gate)
        {
            if (!_discarded)
            {
                return work();
            }
        }

        Thread.Sleep(Timeout.Infinite);
        throw new InvalidOperationException("The process has ended.");
    }
}
