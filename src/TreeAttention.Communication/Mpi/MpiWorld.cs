using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.Nodes;
using TreeAttention.Distributed.Faults;
using TreeAttention.Interop.Mpi;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Communication.Mpi;

/// <summary>The MPI job that this process is a rank of, joined once and left once; or a communicator of a job that its caller began and ends.</summary>
/// <remarks>
/// <see cref="Dispose"/> is for the normal end, because leaving waits for every rank. Who fails calls <see cref="Abort"/>. A
/// process that ends without either aborts the job: else the launcher might report success, or the other ranks wait for ever.
/// Over a caller's communicator nothing of the job is begun or ended: its duplicate alone is used, from the calling thread alone.
/// Waits there end when the group does, and a group that failed is left by <see cref="Abandon"/>.
/// </remarks>
internal sealed unsafe class MpiWorld : IDisposable
{
    private static readonly TimeSpan _teardownLimit = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan _abortLimit = TimeSpan.FromSeconds(5);
    private static int _joined;

    private readonly MpiLibrary _library;
    private readonly Action<string> _warn;
    private readonly nint _communicator;
    private readonly MpiChannel _bootstrap;
    private readonly MpiNodes _nodes;
    private volatile bool _isAbandoned;
    private FaultCode _code;
    private string? _untold;

    private MpiWorld(MpiLibrary library, LauncherEnvironment launcher, Action<string> warn, JoinGuard? guard)
    {
        (_library, _warn, _communicator) = (library, warn, library.Constants.CommWorld);
        if (MpiLibrary.IsRunning)
        {
            throw MpiRefusals.RunsAlready(library);
        }

        int provided = 0;
        guard?.Enter("in MPI_Init");
        int error = MpiNative.InitThread(null, null, library.Constants.ThreadMultiple, &provided);
        if (error != 0)
        {
            throw new FaultException(FaultCode.CommunicationFault, $"{library.Product} ({library.File}) could not be initialised: error {error}.");
        }

        IsMultithreaded = provided == library.Constants.ThreadMultiple;

        // Until it is known who shares which cores, every wait is polite.
        _bootstrap = new MpiChannel(library, _communicator, polite: true, MpiTransport.DefaultPieceBytes);
        if (launcher.Size is int started && started != Size)
        {
            Leave();
            throw MpiRefusals.OtherWorld(launcher, library, Size);
        }

        guard?.Enter("for all ranks to say where they are");
        _nodes = MpiNodes.Gather(_bootstrap);
        AppDomain.CurrentDomain.ProcessExit += AbortUnlessLeft;
    }

    private MpiWorld(MpiLibrary library, nint communicator, Action whileWaiting)
    {
        (_library, _warn, IsGuest) = (library, _ => { }, true);
        nint duplicate = 0;
        int error = MpiNative.CommDup(communicator, &duplicate);
        if (error != 0)
        {
            throw new FaultException(
                FaultCode.CommunicationFault, $"{library.Product} ({library.File}) could not duplicate the communicator {communicator:x}: error {error}.");
        }

        _communicator = duplicate;
        _bootstrap = new MpiChannel(library, duplicate, polite: true, MpiTransport.DefaultPieceBytes, whileWaiting);
        _nodes = MpiNodes.Gather(_bootstrap);
    }

    /// <summary>This rank.</summary>
    public int Rank => _bootstrap.Rank;

    /// <summary>Number of ranks.</summary>
    public int Size => _bootstrap.Size;

    /// <summary>The library: <c>Open MPI</c> or <c>MPICH</c> (and its relatives).</summary>
    public string Product => _library.Product;

    /// <summary>The name under which the library was found: <c>libmpi.so.40</c>.</summary>
    public string LibraryFile => _library.File;

    /// <summary>The binary interface in use: <c>OpenMpi</c>, <c>Mpich</c> or <c>Standard</c>.</summary>
    public string BinaryInterface => _library.Constants.Abi.ToString();

    /// <summary>MPI is the caller's: this is a copy of a communicator of its.</summary>
    public bool IsGuest { get; }

    /// <summary>The library says that it reads and writes GPU memory by itself.</summary>
    public bool IsCudaAware => _library.IsCudaAware;

    /// <summary>The library granted calls from several threads at once.</summary>
    public bool IsMultithreaded { get; }

    /// <summary>For every rank the index of its node, in order of first appearance.</summary>
    public IReadOnlyList<int> Nodes => _nodes.NodeOfRank;

    /// <summary>For every rank its host name.</summary>
    public IReadOnlyList<string> Hosts => _nodes.Hosts;

    /// <summary>All ranks run on one machine.</summary>
    public bool SharesOneNode => Nodes.All(node => node == 0);

    /// <summary>Some machine has more ranks than cores: waits then give the core away.</summary>
    public bool IsOversubscribed => _nodes.IsOversubscribed;

    /// <summary>Calls of MPI may still be made: nobody has left it, and no fault has.</summary>
    internal bool MayCall => !HasLeft && (!IsGuest || MpiLibrary.IsRunning);

    private bool HasLeft { get; set; }

    internal MpiStateReduction States { get; } = new();

    internal MpiRequests PartRequests { get; } = new();

    /// <summary>Loads MPI and joins the job. Once in a process.</summary>
    /// <param name="launcher">What the launcher told this process.</param>
    /// <param name="libraryPath">The library to load, instead of the usual names.</param>
    /// <param name="warn">Takes a sentence for the user when leaving gets stuck; null drops it.</param>
    /// <param name="guard">Ends the process when ranks do not come; hears what is waited for.</param>
    /// <exception cref="FaultException">
    /// No MPI (69); the launcher and the library disagree on the ranks, or two MPIs are in this process (78).
    /// </exception>
    public static MpiWorld Join(LauncherEnvironment launcher, string? libraryPath = null, Action<string>? warn = null, JoinGuard? guard = null)
    {
        if (Interlocked.Exchange(ref _joined, 1) != 0)
        {
            throw new InvalidOperationException("MPI can be joined once in a process: keep the world.");
        }

        return new MpiWorld(Load(libraryPath != null ? [libraryPath] : launcher.Candidates), launcher, warn ?? (_ => { }), guard);
    }

    /// <summary>Joins over a communicator of the caller's, who has initialised MPI. Every rank of the communicator calls it.</summary>
    /// <param name="communicator">The handle: the address in Open MPI and under the standard ABI, the number in MPICH and its relatives.</param>
    /// <param name="libraryPath">The library that the handle is of; null finds the one that this process has loaded.</param>
    /// <param name="whileWaiting">Called now and then while others are waited for, also by its transports; throws when waiting is pointless.</param>
    /// <exception cref="FaultException">No MPI runs in this process, or there is no communicator (2); two MPIs are in this process (78).</exception>
    public static MpiWorld Enter(nint communicator, string? libraryPath, Action whileWaiting)
    {
        IReadOnlyList<string> candidates = libraryPath != null ? [libraryPath] : MpiLibrary.MappedCandidates();
        if (candidates.Count == 0)
        {
            throw MpiRefusals.DoesNotRun("this process has loaded no MPI library");
        }

        MpiLibrary library = Load(candidates);
        if (!MpiLibrary.IsRunning)
        {
            throw MpiRefusals.DoesNotRun($"{library.Product} ({library.File}) is not initialised, or has been left");
        }

        return communicator == 0 || communicator == library.Constants.CommNull
            ? throw MpiRefusals.DoesNotRun("it is MPI_COMM_NULL")
            : new MpiWorld(library, communicator, whileWaiting);
    }

    /// <summary>The transport among all ranks.</summary>
    /// <param name="nodes">Node of each rank, in place of what the machine says; null for the truth.</param>
    /// <param name="pieceBytes">Bytes of the longest piece of a message; every rank gives the same.</param>
    public MpiTransport CreateTransport(IReadOnlyList<int>? nodes = null, int pieceBytes = MpiTransport.DefaultPieceBytes)
    {
        var channel = new MpiChannel(_library, _communicator, IsGuest || IsOversubscribed, pieceBytes, _bootstrap.WhileWaiting);
        return new MpiTransport(this, channel, NodeNumbers.Of([.. nodes ?? Nodes]), new Traffic(), ownsCommunicator: false);
    }

    /// <summary>Gives every rank the bytes of rank 0: how the control plane's address travels. Collective.</summary>
    /// <param name="bytes">Looked at on rank 0 only.</param>
    public byte[] Broadcast(byte[] bytes)
    {
        int length = bytes.Length;
        _bootstrap.Broadcast((nint)(&length), sizeof(int), root: 0);
        byte[] message = Rank == 0 ? bytes : new byte[length];
        fixed (byte* address = message)
        {
            _bootstrap.Broadcast((nint)address, length, root: 0);
        }

        return message;
    }

    /// <summary>Ends all ranks with this exit code, from any thread, also while another thread is inside MPI. Does not return.</summary>
    /// <remarks>Only this keeps the code under every launcher. Should the library hang in it, the process ends by itself.</remarks>
    public void Abort(FaultCode code)
    {
        if (!HasLeft)
        {
            BoundedTeardown.Run(
                () => _ = MpiNative.Abort(_library.Constants.CommWorld, (int)code), _abortLimit, () => LibC.ExitNow((int)code));
        }

        LibC.ExitNow((int)code);
    }

    /// <summary>Goes on without the job, which another rank ends: it is not finalised, and the end of this process ends it.</summary>
    public void AbandonJob() => _isAbandoned = true;

    /// <summary>Leaves a caller's communicator after a fault: what others may still wait in is not waited for, and is MPI_Finalize's.</summary>
    public void Abandon() => HasLeft = true;

    /// <summary>How the work ended, should leaving get stuck: the code to end with, and a fault that nobody has told yet.</summary>
    public void EndsWith(FaultCode code, string? untold) => (_code, _untold) = (code, untold);

    /// <summary>Leaves the job, when every rank does; at most 10 seconds, after which the process ends with the code of its work.</summary>
    public void Dispose()
    {
        if (IsGuest && MayCall)
        {
            States.Free(_bootstrap);
            nint duplicate = _communicator;
            _bootstrap.Check(MpiNative.CommFree(&duplicate), "freeing a communicator");
        }
        else if (!IsGuest && _isAbandoned)
        {
            return; // MPI is left by the end of the process
        }
        else if (!IsGuest && !HasLeft)
        {
            AppDomain.CurrentDomain.ProcessExit -= AbortUnlessLeft;
            Leave();
        }

        HasLeft = true;
    }

    private static MpiLibrary Load(IReadOnlyList<string> candidates)
    {
        MpiLibrary library;
        try
        {
            library = MpiLibrary.Load(candidates);
        }
        catch (DllNotFoundException error)
        {
            throw MpiRefusals.NoLibrary(candidates, error);
        }

        return MpiRefusals.TwoLibraries(library, MpiLibrary.MappedFiles()) is FaultException mixed ? throw mixed : library;
    }

    private void Leave() => BoundedTeardown.Run(
        () =>
        {
            States.Free(_bootstrap);
            _bootstrap.Check(MpiNative.FinalizeLibrary(), "leaving MPI");
            HasLeft = true;
        },
        _teardownLimit,
        () =>
        {
            if (Rank == 0 && _untold is not null)
            {
                _warn(_untold);
            }

            string work = _untold is not null ? "the work has failed" : _code == FaultCode.None ? "the work is complete" : $"the work ended with {(int)_code}";
            _warn($"Rank {Rank} of {Size}: {work}, but MPI_Finalize did not end within {_teardownLimit.TotalSeconds:0} s. Leaving without it.");
            LibC.ExitNow(_code == FaultCode.None ? Environment.ExitCode : (int)_code);
        });

    private void AbortUnlessLeft(object? sender, EventArgs arguments)
    {
        if (Environment.ExitCode == 0 && _isAbandoned)
        {
            _warn($"rank {Rank} ({Hosts[Rank]}, pid {Environment.ProcessId}): this rank left the group while others waited for it: every rank must make the "
                + "same calls, and leave when all are done.");
            Abort(FaultCode.PeerLost);
        }

        Abort(Environment.ExitCode != 0 ? (FaultCode)Environment.ExitCode : FaultCode.Bug);
    }
}

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

/// <summary>Set-ups that would run and be wrong, in the words that the user reads.</summary>
internal static class MpiRefusals
{
    /// <summary>None of the candidates could be loaded.</summary>
    internal static FaultException NoLibrary(IReadOnlyList<string> candidates, DllNotFoundException error) => new(
        FaultCode.Unavailable,
        $"No MPI library could be loaded; tried {string.Join(", ", candidates)}. Install Open MPI (libmpi.so.40) or MPICH (libmpich.so.12, "
        + $"libmpi.so.12, libmpi_abi.so.1), name one with TREEATTN_MPI_LIBRARY, or run without MPI: {Setting.TransportInProcess}.\n" + error.Message,
        error);

    /// <summary>MPI runs already: the process has initialised it itself.</summary>
    internal static FaultException RunsAlready(MpiLibrary library) => new(
        FaultCode.CommandLine,
        $"{library.Product} ({library.File}) is initialised in this process already. Give the communicator to join over: AttentionGroup.JoinMpi(communicator).");

    /// <summary>A communicator is given, but no MPI has it.</summary>
    internal static FaultException DoesNotRun(string why) => new(
        FaultCode.CommandLine,
        $"A communicator of MPI is given, but {why}. Initialise MPI, join over a communicator while it lasts, and dispose of the group before MPI_Finalize.");

    /// <summary>The launcher started another number of processes than the library sees: it is another MPI's launcher.</summary>
    internal static FaultException OtherWorld(LauncherEnvironment launcher, MpiLibrary library, int seen) => new(
        FaultCode.RanksDisagree,
        $"{launcher.Size} {(launcher.Size == 1 ? "process was" : "processes were")} started by {launcher.Name}, but this process loaded "
        + $"{library.Product} ({library.File}) and sees {seen} {(seen == 1 ? "rank" : "ranks")}: each process would work alone. "
        + $"Start it with {(library.IsOpenMpi ? "mpiexec.openmpi" : "mpiexec.mpich")}, or set TREEATTN_MPI_LIBRARY to the launcher's own library.")
    { Rank = launcher.Rank };

    /// <summary>Another MPI than the loaded one is mapped too: calls of one would reach the other.</summary>
    /// <returns>Null when all is well.</returns>
    internal static FaultException? TwoLibraries(MpiLibrary library, IReadOnlyList<string> mapped)
    {
        string? other = mapped.FirstOrDefault(file => MpiLibrary.FamilyOf(file) != library.IsOpenMpi);
        return other == null ? null : new FaultException(
            FaultCode.RanksDisagree,
            $"Two MPI libraries are in this process: {mapped.FirstOrDefault(file => file != other, library.File)} ({library.Product}) was loaded, but "
            + $"{other} was there already (by LD_PRELOAD, or by a library that links it). Unload that one, or name the one to use: "
            + "TREEATTN_MPI_LIBRARY=/path/to/libmpi.so.");
    }
}
