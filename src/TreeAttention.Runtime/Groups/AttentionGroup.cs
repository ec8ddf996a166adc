using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Distributed.Ports;
using TreeAttention.Runtime.Groups;

namespace TreeAttention;

/// <summary>One rank's place in a group of ranks that attend together: its transport, its device, and how all agree.</summary>
/// <remarks>
/// Every rank makes the same calls in the same order, from one thread at a time. A fault that all ranks share
/// (<see cref="FaultException.IsAgreed"/>) leaves the group as it was; any other ends it: dispose of the group, which tells the
/// other ranks, and under MPI ends the job.
/// </remarks>
public sealed partial class AttentionGroup : IDisposable
{
    private const int MostRanksOfProcess = 4096; // threads
    private const int MostWork = 16 << 20; // bytes

    private readonly AttentionGroup? _whole; // whose ranks this is a part of
    private readonly Tenants _made = new();
    private readonly Tenancy _tenancy;
    private Action<Exception?>? _leave;
    private Exception? _fault;

    internal AttentionGroup(RankContext context, int threads, string description)
    {
        Context = context;
        Threads = threads;
        Description = description;
        _tenancy = new Tenancy(context.Door, nameof(AttentionGroup), Leave);
    }

    /// <summary>Some ranks of a group, or its ranks over another context: a fault that this rank meets there ends the whole, and it ends with the whole.</summary>
    internal AttentionGroup(RankContext context, AttentionGroup whole, string description)
        : this(context, whole.Threads, description)
    {
        _whole = whole;
        _tenancy.Join(whole._made);
    }

    /// <summary>The transport, the device and the control plane of this rank.</summary>
    internal RankContext Context { get; }

    /// <summary>Threads that this rank computes with on a CPU.</summary>
    public int Threads { get; }

    /// <summary>Node of each rank: what the transport finds, or what the options put in its place.</summary>
    public IReadOnlyList<int> Nodes => Context.Transport.Nodes;

    /// <summary>What this rank has sent so far, over all steps.</summary>
    public Traffic Traffic => Context.Transport.Traffic;

    /// <summary>What the ranks are: <c>4 in-process ranks</c>, the MPI library.</summary>
    public string Description { get; }

    /// <summary>Which rank of what: <c>rank 1 of 4: 4 in-process ranks</c>.</summary>
    public override string ToString()
    {
        string state = _tenancy.HasEnded ? ", disposed of" : _fault is null ? "" : $", ended: {_fault.Message}";
        return string.Create(CultureInfo.InvariantCulture, $"rank {Rank} of {Size}: {Description}{state}");
    }

    /// <summary>This rank.</summary>
    public int Rank => Context.Transport.Rank;

    /// <summary>Number of ranks.</summary>
    public int Size => Context.Transport.Size;

    /// <summary>This rank speaks for the group: it alone writes results.</summary>
    public bool IsRoot => Rank == 0;

    /// <summary>[ranks] how long ago each last came further, for a service's health check. From any thread; nobody waits.</summary>
    /// <remarks>
    /// Ranks of this process are all known. Of MPI ranks rank 0 knows all, by their heartbeats, and the others know themselves and rank 0. A rank that is
    /// idle gets old too: what is wrong is one that is in a call for long.
    /// </remarks>
    public IReadOnlyList<RankHealth> Health => [.. Enumerable.Range(0, Size).Select(rank => rank == Rank
        ? new RankHealth(rank, TimeSpan.FromMilliseconds(Environment.TickCount64 - Context.Door.ChangedAt), Context.Door.IsTaken ? Context.Door.Call : null)
        : Context.Control.HealthOf(rank))];

    /// <summary>Joins as one rank: of the MPI job when a launcher (mpiexec, srun) started this process, else alone.</summary>
    /// <param name="options">Device, threads, transport; <see cref="GroupOptions.Ranks"/> is the size of the job, or null.</param>
    /// <exception cref="FaultException">
    /// The group cannot be formed: no MPI, no GPU (69), ranks disagree (78), or several in-process ranks are asked for (2), which
    /// <see cref="JoinInProcess"/> gives.
    /// </exception>
    public static AttentionGroup Join(GroupOptions? options = null)
    {
        options ??= new GroupOptions();
        var environment = ProcessEnvironment.Read();
        bool isLaunched = options.Transport is TransportKind.Mpi || (options.Transport != TransportKind.InProcess && environment.IsLaunched);
        if (!isLaunched && options.Ranks is > 1)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"{options.Ranks} ranks are asked for, but no launcher started this process, which is then one rank. Start it with mpiexec -n {options.Ranks}, "
                + "or take in-process ranks from AttentionGroup.JoinInProcess.");
        }

        return GroupMembership.Join(options, environment, 1)[0];
    }

    /// <summary>Makes a group whose ranks all live in this process, and joins as each of them: a thread of the caller's for each.</summary>
    /// <param name="ranks">At least 1.</param>
    /// <param name="options">Device and threads of each rank; a GPU each, in turn, where they are GPUs.</param>
    /// <returns>[ranks] each rank's place; a wait of one ends when another leaves with a fault.</returns>
    /// <exception cref="FaultException">The group cannot be formed.</exception>
    public static IReadOnlyList<AttentionGroup> JoinInProcess(int ranks, GroupOptions? options = null)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(ranks, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(ranks, MostRanksOfProcess);
        options = (options ?? new GroupOptions()) with { Ranks = ranks };
        options = options.Transport == TransportKind.Auto ? options with { Transport = TransportKind.InProcess } : options;

        // Whoever launched this process, its ranks are threads.
        return GroupMembership.Join(options, ProcessEnvironment.Read() with { Launcher = LauncherEnvironment.None }, ranks);
    }

    /// <summary>Runs the same work on in-process ranks, each on a thread of its own, and returns when all are done; their groups are disposed of.</summary>
    /// <remarks>What one rank throws ends the others, which throw <see cref="FaultCode.PeerLost"/>; the caller gets what was thrown first.</remarks>
    /// <param name="ranks">At least 1.</param>
    /// <param name="body">The work of one rank.</param>
    /// <param name="options">As for <see cref="JoinInProcess"/>.</param>
    /// <exception cref="FaultException">The group cannot be formed, or as the work throws it.</exception>
    public static void RunInProcess(int ranks, Action<AttentionGroup> body, GroupOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(body);
        new InProcessRun(JoinInProcess(ranks, options), body).Run();
    }

    /// <summary>The same for work that has a result.</summary>
    /// <returns>[ranks] the result of each.</returns>
    /// <inheritdoc cref="RunInProcess(int, Action{AttentionGroup}, GroupOptions?)"/>
    public static IReadOnlyList<T> RunInProcess<T>(int ranks, Func<AttentionGroup, T> body, GroupOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(body);
        ArgumentOutOfRangeException.ThrowIfLessThan(ranks, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(ranks, MostRanksOfProcess);
        var results = new T[ranks];
        RunInProcess(ranks, group => { results[group.Rank] = body(group); }, options);
        return results;
    }

    /// <summary>Joins over a communicator of the caller's own MPI, which stays the caller's: it is duplicated, and MPI is neither begun nor ended.</summary>
    /// <remarks>
    /// Every rank of the communicator calls it. MPI is called on the calling threads alone, one at a time, so MPI_THREAD_FUNNELED will do. A
    /// rank that fails ends the group and not the job: the others throw. Dispose of the group before MPI_Finalize.
    /// </remarks>
    /// <param name="communicator">An MPI_Comm: the pointer in Open MPI and under the MPI 5 ABI, the integer in MPICH, Intel MPI and MVAPICH.</param>
    /// <param name="options">Device, threads, GPU; with <see cref="TransportKind.Nccl"/>, NCCL moves the data and MPI only brings the ranks together.</param>
    /// <exception cref="FaultException">No MPI runs in this process, or the communicator is null (2); or as <see cref="Join"/>.</exception>
    public static AttentionGroup JoinMpi(nint communicator, GroupOptions? options = null) =>
        GuestGroup.JoinMpi(communicator, options ?? new GroupOptions(), ProcessEnvironment.Read());

    /// <summary>Joins over a communicator of the caller's own NCCL, on the GPU that it is on; it stays the caller's: a part is split off it.</summary>
    /// <remarks>Every rank of the communicator calls it, with nothing else in progress on it. Otherwise as <see cref="JoinMpi"/>.</remarks>
    /// <param name="communicator">An ncclComm_t, connected.</param>
    /// <param name="options">Nodes, stall limit; the device and the transport are given.</param>
    /// <exception cref="FaultException">No NCCL or driver (69), no such communicator (2), or NCCL failed (203).</exception>
    public static AttentionGroup JoinNccl(nint communicator, GroupOptions? options = null) =>
        GuestGroup.JoinNccl(communicator, options ?? new GroupOptions(), ProcessEnvironment.Read());

    /// <summary>Makes a group of the ranks that give the same color: the ranks of one tensor-parallel slice, each with a share of the sequence.</summary>
    /// <remarks>
    /// With tensor-parallel heads t and sequence shards s, rank r = t·shards + s calls Split(color: t, key: s): its heads' keys are
    /// then sharded over the ranks of its color alone. Every rank of this group calls it. The device is shared with this group,
    /// which must outlive the part.
    /// </remarks>
    /// <param name="color">Which part, at least 0.</param>
    /// <param name="key">Orders the ranks of a part.</param>
    public AttentionGroup Split(int color, int key)
    {
        using RankDoor.Visit visit = Enter(nameof(Split));
        ArgumentOutOfRangeException.ThrowIfNegative(color);
        long[][] choices = Gather(color, key);
        int[] members = [.. Enumerable.Range(0, Size).Where(rank => choices[rank][0] == color).OrderBy(rank => choices[rank][1]).ThenBy(rank => rank)];
        ITransport transport = Context.Transport.Split(color, key);
#pragma warning disable CA2000 // the control plane of a part holds nothing
        var part = new AttentionGroup(
            new RankContext(transport, Context.Device, new PartControlPlane(Context.Control, members)) { Door = Context.Door },
            this, $"{members.Length} of {Description}");
#pragma warning restore CA2000
        part.LeaveBy(_ => transport.Dispose());
        return part;
    }

    /// <summary>Makes an empty KV cache whose keys are sharded over the ranks. Every rank calls it with the same options; it belongs to the caller.</summary>
    /// <exception cref="FaultException">The options describe no cache (65), or it does not fit in some rank's memory (71).</exception>
    public ShardedKvCache CreateCache(CacheOptions options)
    {
        using RankDoor.Visit visit = Enter(nameof(CreateCache));
        ArgumentNullException.ThrowIfNull(options);
        AgreeOn(nameof(CreateCache), CallSettings.Of(options));
        ShardedKvCache cache = Settle(() => new ShardedKvCache(Context, options));
        cache.Tenancy.Join(_made);
        GroupMetrics.Follow(cache);
        return cache;
    }

    /// <summary>Prepares decode steps over a cache: everything is allocated here, nothing in a step. It belongs to the caller.</summary>
    /// <param name="cache">A cache of this group.</param>
    /// <param name="options">Sizes of the queries, meaning of attention, how the ranks meet.</param>
    /// <exception cref="FaultException">The options contradict the cache or themselves (2, 65), or memory is short (71).</exception>
    /// <exception cref="ArgumentException">The cache is of another group.</exception>
    public DecodeStep CreateStep(ShardedKvCache cache, DecodeOptions options)
    {
        using RankDoor.Visit visit = Enter(nameof(CreateStep));
        RequireUsable(cache);
        RequireWhole(options);
        AgreeOn(nameof(CreateStep), CallSettings.Of(options));
        DecodeStep step = Settle(() => new DecodeStep(Context, cache, options));
        step.Tenancy.Join(_made);
        return step;
    }

    /// <summary>Prepares the verification of token trees over a cache. It belongs to the caller.</summary>
    /// <param name="cache">A cache of this group.</param>
    /// <param name="options">As for <see cref="CreateStep"/>.</param>
    /// <param name="trees">One tree for all batch rows, or one for each, of the same number of nodes.</param>
    /// <exception cref="FaultException">The options contradict the cache, the trees or themselves (2, 65), or memory is short (71).</exception>
    /// <exception cref="ArgumentException">The cache is of another group.</exception>
    public SpeculativeStep CreateSpeculativeStep(ShardedKvCache cache, DecodeOptions options, params IReadOnlyList<TokenTree> trees)
    {
        using RankDoor.Visit visit = Enter(nameof(CreateSpeculativeStep));
        RequireUsable(cache);
        RequireWhole(options);
        ArgumentNullException.ThrowIfNull(trees);
        if (trees.Contains(null))
        {
            throw new ArgumentException("A tree is null: give one tree for all rows, or one for each.", nameof(trees));
        }

        AgreeOn(nameof(CreateSpeculativeStep), [.. CallSettings.Of(options), .. CallSettings.Of(trees)]);
        SpeculativeStep step = Settle(() => new SpeculativeStep(Context, cache, options, trees));
        step.Tenancy.Join(_made);
        return step;
    }

    /// <summary>Prepares the prefill of prompts into a cache: every rank gives its share of them, or with chunked all. It belongs to the caller.</summary>
    /// <param name="cache">A cache of this group.</param>
    /// <param name="options">Prompts, meaning of attention, method.</param>
    /// <exception cref="FaultException">The options contradict the cache or themselves (2, 65), or memory is short (71).</exception>
    /// <exception cref="ArgumentException">The cache is of another group.</exception>
    public PrefillStep CreatePrefill(ShardedKvCache cache, PrefillOptions options)
    {
        using RankDoor.Visit visit = Enter(nameof(CreatePrefill));
        RequireUsable(cache);
        RequireWhole(options);
        AgreeOn(nameof(CreatePrefill), CallSettings.Of(options));
        PrefillStep prefill = Settle(() => PrefillStep.Create(Context, cache, options));
        prefill.Tenancy.Join(_made);
        return prefill;
    }

    /// <summary>Leaves the group: in order, or, after a fault that only this rank met, telling the others. Any number of times.</summary>
    /// <remarks>
    /// A thread that is in a call finishes it first. What the group made ends with it: steps, caches and parts may be disposed of before or after.
    /// </remarks>
    public void Dispose()
    {
        if (_tenancy.End())
        {
            _tenancy.AwaitFreed();
        }
    }

    /// <summary>The rank leaves by this error, unless every rank has it alike: the others hear of it.</summary>
    internal void LeaveWith(Exception error) => Note(error);

    /// <summary>What a rank that leaves does: in order, or with the fault that it alone met.</summary>
    internal void LeaveBy(Action<Exception?> leave) => _leave = leave;

    /// <summary>Does a part of the work that can fail on single ranks; when it fails anywhere, every rank throws the same fault.</summary>
    /// <remarks>Every rank calls it. Afterwards either all ranks go on or all leave, with one code.</remarks>
    /// <exception cref="FaultException">The fault of the lowest rank that failed.</exception>
    public T Together<T>(Func<T> work)
    {
        using RankDoor.Visit visit = Enter(nameof(Together));
        ArgumentNullException.ThrowIfNull(work);
        return Settle(work);
    }

    /// <inheritdoc cref="Together{T}(Func{T})"/>
    public void Together(Action work)
    {
        ArgumentNullException.ThrowIfNull(work);
        Together(() =>
        {
            work();
            return true;
        });
    }

    /// <summary>Gives every rank the work of rank 0: what a service decides in one place, in a form of its own, before the steps that do it.</summary>
    /// <remarks>
    /// Every rank calls it, and calls it again when the work is done. Ranks other than 0 wait for work without a deadline, and learn of a rank
    /// that is lost or stopped at once; rank 0 waits for them as in any call. It travels beside the tensors, for some tens of microseconds.
    /// A whole group shares work; its parts get theirs in it.
    /// </remarks>
    /// <param name="work">Rank 0's bytes, at most 16 MiB; the others give none.</param>
    /// <param name="cancellation">As for a step: before the call it throws, within it it ends the group.</param>
    /// <returns>Rank 0's bytes, the caller's own copy.</returns>
    /// <exception cref="ArgumentException">Another rank than 0 gives work, or there is too much of it.</exception>
    /// <exception cref="InvalidOperationException">The group is a part of another one.</exception>
    /// <exception cref="FaultException">A rank has left or is lost (200), is stopped, or does not come where rank 0 waits for it (201).</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public byte[] ShareWork(ReadOnlySpan<byte> work = default, CancellationToken cancellation = default)
    {
        using RankDoor.Visit visit = Enter(nameof(ShareWork));
        if (work.Length > (IsRoot ? MostWork : 0))
        {
            throw new ArgumentException(
                IsRoot ? $"Work has at most {MostWork:N0} bytes, but this has {work.Length:N0}." : $"Rank 0 gives the work; rank {Rank} gives none.", nameof(work));
        }

        using CancellationTokenRegistration registration = Watch(cancellation);
        try
        {
            return Context.Control.AwaitWork(work.ToArray());
        }
        catch (FaultException fault)
        {
            Note(fault);
            cancellation.ThrowIfCancellationRequested();
            throw;
        }
    }

    /// <summary>Refuses to work when the ranks were started with different settings.</summary>
    /// <param name="settings">Names and values; the same names on every rank.</param>
    /// <exception cref="FaultException">Ranks disagree (78): a line for each setting that differs.</exception>
    internal void Agree(IReadOnlyList<KeyValuePair<string, string>> settings) => SettingsAgreement.Agree(Context.Control, settings);

    /// <summary>Gathers the same number of integers of every rank on every rank: [rank][index].</summary>
    internal long[][] Gather(params ReadOnlySpan<long> mine) => SettingsAgreement.Gather(Context.Control, mine);

    /// <summary>Goes in for a call over a cache of this group.</summary>
    /// <exception cref="ArgumentException">The cache is of another group.</exception>
    /// <exception cref="ObjectDisposedException">The group or the cache was disposed of.</exception>
    internal RankDoor.Visit EnterWith(ShardedKvCache cache, string call)
    {
        RankDoor.Visit visit = Enter(call);
        try
        {
            RequireUsable(cache);
            return visit;
        }
        catch
        {
            visit.Dispose();
            throw;
        }
    }

    private RankDoor.Visit Enter(string call)
    {
        RankDoor.Visit visit = _tenancy.Enter(call);
        if (FaultThatEnded is not { } fault)
        {
            return visit;
        }

        visit.Dispose();
        throw new FaultException(
            (fault as FaultException)?.Code ?? FaultCode.Bug, $"The group has ended, dispose of it: {fault.Message}", fault)
        { Rank = (fault as FaultException)?.Rank };
    }

    private Exception? FaultThatEnded => _fault ?? _whole?.FaultThatEnded;

    private void AgreeOn(string call, IEnumerable<KeyValuePair<string, string>> settings)
    {
        try
        {
            SettingsAgreement.AgreeOnCall(Context.Control, call, settings);
        }
        catch (FaultException fault) when (!fault.IsAgreed)
        {
            Note(fault);
            throw;
        }
    }

    private T Settle<T>(Func<T> work)
    {
        try
        {
            return RankAgreement.Together(Context.Control, work);
        }
        catch (FaultException fault) when (!fault.IsAgreed)
        {
            Note(fault);
            throw;
        }
    }

    private void Leave()
    {
        _made.EndAllInside();
        Interlocked.Exchange(ref _leave, null)?.Invoke(_fault);
    }

    private void RequireUsable(ShardedKvCache cache)
    {
        ArgumentNullException.ThrowIfNull(cache);
        RequireOwn(cache.Context, "cache", nameof(cache));
        cache.RequireUsable();
    }

    private void RequireOwn(RankContext context, string what, string parameter)
    {
        if (!ReferenceEquals(context, Context))
        {
            throw new ArgumentException(
                $"The {what} is of another group than this one, which is {Description}: use it with the group and rank that made it.", parameter);
        }
    }

    private static void RequireWhole(DecodeOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(options.Attention, nameof(options));
        ArgumentNullException.ThrowIfNull(options.Plan, nameof(options));
    }

    private static void RequireWhole(PrefillOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(options.Lengths, nameof(options));
        ArgumentNullException.ThrowIfNull(options.Attention, nameof(options));
        ArgumentNullException.ThrowIfNull(options.Layout, nameof(options));
        ArgumentNullException.ThrowIfNull(options.Plan, nameof(options));
    }
}
