using System;
using System.Buffers.Binary;
using System.Globalization;
using System.Linq;
using System.Numerics.Tensors;
using System.Threading;
using TreeAttention.Distributed.Cache;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention;

/// <summary>A growing KV cache whose keys are dealt to the ranks by pages of 512 positions, in the lanes layout.</summary>
/// <remarks>
/// Every rank makes the same calls in the same order and keeps the same page table; a token's keys and values are stored by the
/// rank that owns its page. Because pages are dealt to 256 lanes, a growing row stays balanced: of n pages a rank of L lanes (256 / ranks,
/// rounded down or up) has at most n·L/256 + 2.78, exactly n·L/256 after every 256. Rows are independent: each has its
/// length, and may share pages with others. A layer's length is what was appended to that layer. Calls come from one thread.
/// </remarks>
public sealed class ShardedKvCache : IDisposable
{
    private readonly int _rank;
    private readonly int _ranks;
    private readonly CacheWriter _writer;
    private readonly CacheAppender _appender;
    private readonly TokenMover _mover;
    private Exception? _lost;

    /// <summary>Makes an empty cache. Every rank calls it with the same options; the memory alone may differ.</summary>
    /// <param name="context">The rank.</param>
    /// <param name="options">Sizes and types.</param>
    /// <exception cref="ShapeMismatchException">The options describe no cache.</exception>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    internal ShardedKvCache(RankContext context, CacheOptions options)
    {
        options.Validate();
        Options = options;
        Context = context;
        Tenancy = new Tenancy(context.Door, nameof(ShardedKvCache), Close);
        (_rank, _ranks) = options.Replicated ? (0, 1) : (context.Transport.Rank, context.Transport.Size);
        Lanes = [.. LaneTree.LanesOf(_rank, _ranks)];
        Pages = new CachePages(options.Rows, options.MostPages, CacheCapacity.Agree(context, options));
        Contents = new CacheContents(context.Device, options, Pages.FreeOn(_rank));
        Bound = new ValueBound(options);
        Rows = new CacheRows(options, Pages, Prepare);
        _writer = new CacheWriter(this, context.Device);
        _appender = new CacheAppender(this, Rows, _writer);
        _mover = new TokenMover(this, context);
    }

    /// <summary>Sizes and types.</summary>
    public CacheOptions Options { get; }

    /// <summary>Bytes of keys and values that this rank has room for, over all layers.</summary>
    public long Bytes => Contents.Plan.Bytes * Options.Layers;

    /// <summary>A fault came in the middle of a change, and nobody knows what the cache holds: its calls and steps over it throw. Dispose of it, and fill another one.</summary>
    /// <remarks>
    /// A step that fails leaves the cache as it was. Lost is what a GPU held that failed (202), and a row whose accepted tokens could not all be moved.
    /// </remarks>
    public bool IsLost => Volatile.Read(ref _lost) is not null;

    /// <summary>The cache's life.</summary>
    internal Tenancy Tenancy { get; }

    /// <summary>The rank that the cache was made with.</summary>
    internal RankContext Context { get; }

    /// <summary>How large the values of all ranks and layers are.</summary>
    internal ValueBound Bound { get; }

    /// <summary>What each layer has of each row.</summary>
    internal CacheRows Rows { get; }

    internal CachePages Pages { get; }

    internal CacheContents Contents { get; }

    /// <summary>Lanes of this rank, ascending.</summary>
    internal int[] Lanes { get; }

    /// <summary>This rank among those that share the keys.</summary>
    internal int Rank => _rank;

    /// <summary>Ranks that share the keys.</summary>
    internal int Ranks => _ranks;

    /// <summary>Pages of 512 tokens, of all layers together, that no row uses, over all ranks.</summary>
    public int FreePages
    {
        get
        {
            int free = 0;
            for (int rank = 0; rank < _ranks; rank++)
            {
                free += Pages.FreeOn(rank);
            }

            return free;
        }
    }

    /// <summary>As many tokens could be appended to each of some rows: what a scheduler asks before it takes a request in. Every rank has the same answer.</summary>
    /// <param name="rows">Different rows.</param>
    /// <param name="tokens">Tokens for each, behind those of its first layer.</param>
    /// <exception cref="ArgumentOutOfRangeException">The number of tokens is negative.</exception>
    /// <exception cref="ShapeMismatchException">The rows are not different rows of the cache.</exception>
    public bool HasRoomFor(ReadOnlySpan<int> rows, int tokens)
    {
        using RankDoor.Visit visit = Enter(nameof(HasRoomFor));
        ArgumentOutOfRangeException.ThrowIfNegative(tokens);
        Rows.RequireDifferent(rows);
        return Rows.HasRoom(0, rows, tokens);
    }

    /// <summary>Tokens of a row that a layer holds.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such layer or row.</exception>
    public int LengthOf(int layer, int row)
    {
        Tenancy.RequireLiving();
        Rows.RequireLayer(layer);
        Rows.RequireRow(row);
        return Rows.LengthOf(layer, row);
    }

    /// <summary>Tokens of a row that the first layer holds.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such row.</exception>
    public int LengthOf(int row) => LengthOf(0, row);

    /// <summary>What the cache holds: <c>8 rows of at most 131,072 tokens, the longest 4,096; 32 layers, bf16, 8 KV heads of 128</c>.</summary>
    public override string ToString()
    {
        int longest = Enumerable.Range(0, Options.Rows).Select(row => Rows.LengthOf(0, row)).DefaultIfEmpty().Max();
        string state = Tenancy.HasEnded ? ", disposed of" : IsLost ? ", lost" : "";
        return string.Create(
            CultureInfo.InvariantCulture,
            $"{Options.Rows} rows of at most {Options.MaxLength:N0} tokens, the longest {longest:N0}; {Options.Layers} layers, "
            + $"{Options.Type.ShortName()}, {Options.KvHeads} KV heads of {Options.HeadDim}{state}");
    }

    /// <summary>Rotary position of a row's first token: what its left padding takes; 0 without.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such row.</exception>
    public int LeftPaddingOf(int row)
    {
        Tenancy.RequireLiving();
        Rows.RequireRow(row);
        return Rows.PaddingOf(row);
    }

    /// <summary>Position by which a row's token is rotated.</summary>
    internal int TurnOf(int row, int position) => Rows.PaddingOf(row) + position;

    /// <summary>Says that an empty row begins with padding, which is never stored: its first token gets this rotary position.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such row, or the padding is negative.</exception>
    /// <exception cref="InvalidOperationException">The row has tokens.</exception>
    public void PadLeft(int row, int padding)
    {
        using RankDoor.Visit visit = Enter(nameof(PadLeft));
        Rows.RequireRow(row);
        Rows.PadLeft(row, padding);
    }

    /// <summary>Appends the same number of tokens to every row of a layer; every rank gives all of them.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="key">[rows, tokens, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[rows, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <inheritdoc cref="Append(int, ReadOnlySpan{int}, ReadOnlySpan{float}, ReadOnlySpan{float})" path="/exception"/>
    public void Append(int layer, ReadOnlySpan<float> key, ReadOnlySpan<float> value)
    {
        using RankDoor.Visit visit = Enter(nameof(Append));
        Rows.RequireLayer(layer);
        _appender.Append(layer, Rows.All, key, value, depths: [], null);
    }

    /// <summary>Appends the same number of tokens to some rows of a layer; every rank gives all of them.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="rows">Different rows.</param>
    /// <param name="key">[rows given, tokens, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[rows given, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such layer.</exception>
    /// <exception cref="ShapeMismatchException">The rows are not different rows of the cache; the keys or values are no whole tokens for each row.</exception>
    /// <exception cref="FaultException">The cache is full (71) or a number must not be stored (65), on every rank alike; nothing was stored.</exception>
    public void Append(int layer, ReadOnlySpan<int> rows, ReadOnlySpan<float> key, ReadOnlySpan<float> value)
    {
        using RankDoor.Visit visit = Enter(nameof(Append));
        Rows.RequireLayer(layer);
        Rows.RequireDifferent(rows);
        _appender.Append(layer, rows, key, value, depths: [], null);
    }

    /// <summary>The same for the nodes of token trees, whose rotary positions are their depths behind the row's tokens.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="rows">Different rows.</param>
    /// <param name="key">[rows given, tokens, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[rows given, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="depths">[rows given, tokens] depth of each node, 0 for a root; empty for tokens in a line.</param>
    /// <inheritdoc cref="Append(int, ReadOnlySpan{int}, ReadOnlySpan{float}, ReadOnlySpan{float})" path="/exception"/>
    internal void Append(int layer, ReadOnlySpan<int> rows, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<int> depths) =>
        _appender.Append(layer, rows, key, value, depths, null);

    /// <summary>Appends tokens whose keys and values lie in the device's memory, unchecked; every rank gives all of them.</summary>
    /// <inheritdoc cref="Append(int, ReadOnlySpan{int}, ReadOnlySpan{float}, ReadOnlySpan{float}, ReadOnlySpan{int})"/>
    internal void Append(int layer, ReadOnlySpan<int> rows, Region key, Region value, ReadOnlySpan<int> depths = default) =>
        _appender.Append(layer, rows, key, value, depths, null);

    /// <summary>Appends tokens to a row of a layer, of which this rank reads and stores its own alone: for long prompts.</summary>
    /// <remarks>
    /// Every rank calls it for the same tokens. <see cref="ShareLimits"/> afterwards tells the ranks how large their numbers
    /// are, without which sums of numerators take more room than they need.
    /// </remarks>
    /// <param name="layer">The layer.</param>
    /// <param name="row">The row.</param>
    /// <param name="tokens">Tokens over all ranks.</param>
    /// <param name="source">Gives the tokens of this rank.</param>
    /// <exception cref="FaultException">
    /// The cache is full (71), a number that this rank stores must not be stored (65), or the source failed; then the row is as it was.
    /// </exception>
    /// <exception cref="ArgumentException">There is no such layer or row, the number of tokens is negative, or there is no source.</exception>
    public void AppendShard(int layer, int row, int tokens, ITokenSource source)
    {
        ArgumentNullException.ThrowIfNull(source);
        ArgumentOutOfRangeException.ThrowIfNegative(tokens);
        using RankDoor.Visit visit = Enter(nameof(AppendShard));
        Rows.RequireLayer(layer);
        Rows.RequireRow(row);
        _appender.AppendShard(layer, row, tokens, source);
    }

    /// <summary>Tells every rank how large the values of all ranks are. Every rank calls it, after <see cref="AppendShard"/>.</summary>
    public void ShareLimits()
    {
        using RankDoor.Visit visit = Enter(nameof(ShareLimits));
        Bound.Share(Context.Control, Contents.LargestValue());
    }

    /// <summary>Takes the last tokens of a row away, in every layer.</summary>
    /// <param name="row">The row.</param>
    /// <param name="length">Tokens that stay; layers that have less keep what they have.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such row, or the length is negative.</exception>
    public void Truncate(int row, int length)
    {
        using RankDoor.Visit visit = Enter(nameof(Truncate));
        Rows.RequireRow(row);
        Rows.Truncate(row, length);
    }

    /// <summary>Keeps some of the last tokens of a row, one after the other, and takes the rest of them away, in every layer. Every rank calls it.</summary>
    /// <remarks>Tokens keep the rotation that they were appended with: a path of a token tree, appended at its depths, then stands right.</remarks>
    /// <param name="row">The row.</param>
    /// <param name="first">Position of the first token that is not kept anyway.</param>
    /// <param name="kept">Which tokens stay, as ascending offsets from <paramref name="first"/>.</param>
    /// <exception cref="ShapeMismatchException">The offsets do not ascend, or some layer has no token there.</exception>
    /// <exception cref="FaultException">Pages that the row shares cannot be copied: the cache is full (71); nothing was changed.</exception>
    internal void Keep(int row, int first, ReadOnlySpan<int> kept) => Rows.Keep(row, first, kept, _mover, Lose);

    /// <summary>This rank stores the tokens at a position, of whichever row.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The position is negative.</exception>
    public bool Owns(int position)
    {
        Tenancy.RequireLiving();
        ArgumentOutOfRangeException.ThrowIfNegative(position);
        return IsOwn(position / PageSpan.Keys);
    }

    /// <summary>Which page of its owner's memory holds the tokens around a position: rows that share a page name the same. Every rank knows it.</summary>
    /// <param name="row">The row.</param>
    /// <param name="position">A position that some layer has.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such row, or no layer of it has the position.</exception>
    public int SlotOf(int row, int position)
    {
        Tenancy.RequireLiving();
        Rows.RequireRow(row);
        ArgumentOutOfRangeException.ThrowIfNegative(position);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(position, Pages.LengthOf(row));
        return Pages.SlotOf(row, position / PageSpan.Keys);
    }

    /// <summary>Reads a stored token back, on the rank that owns it.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="row">The row.</param>
    /// <param name="position">Position in the row.</param>
    /// <param name="key">[kv_heads, head_dim], rotated as it was stored.</param>
    /// <param name="value">[kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <returns>False on the other ranks, which get nothing.</returns>
    /// <exception cref="ArgumentOutOfRangeException">There is no such layer or row, or the layer has no token there.</exception>
    /// <exception cref="ShapeMismatchException">There is not room for one token's key and value.</exception>
    public bool TryRead(int layer, int row, int position, Span<float> key, Span<float> value)
    {
        using RankDoor.Visit visit = Enter(nameof(TryRead));
        Rows.RequireLayer(layer);
        Rows.RequireRow(row);
        ArgumentOutOfRangeException.ThrowIfNegative(position);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(position, Rows.LengthOf(layer, row));
        if (key.Length != Options.KeyFloats || value.Length != Options.ValueFloats)
        {
            throw new ShapeMismatchException(
                $"A token has {Options.KeyFloats} key and {Options.ValueFloats} value elements, but there is room for {key.Length} and {value.Length}.",
                key.Length != Options.KeyFloats ? nameof(key) : nameof(value));
        }

        if (!IsOwn(position / PageSpan.Keys))
        {
            return false;
        }

        _mover.Read(layer, row, position, key, value);
        return true;
    }

    /// <summary>Empties a row; its padding goes too.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such row.</exception>
    public void Release(int row)
    {
        using RankDoor.Visit visit = Enter(nameof(Release));
        Rows.RequireRow(row);
        Rows.Release(row);
    }

    /// <summary>Makes a row begin with the first tokens of another one: their pages are shared until one of the rows writes to them.</summary>
    /// <param name="from">The row that has the tokens.</param>
    /// <param name="to">The row that gets them; what it held is released.</param>
    /// <param name="length">Tokens that are shared, at most those that every layer of the row has.</param>
    /// <exception cref="InvalidOperationException">The row has fewer tokens in some layer, or is forked into itself.</exception>
    /// <exception cref="ArgumentOutOfRangeException">There is no such row, or the length is negative.</exception>
    public void Fork(int from, int to, int length)
    {
        using RankDoor.Visit visit = Enter(nameof(Fork));
        Rows.RequireRow(from);
        Rows.RequireRow(to);
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        Rows.Fork(from, to, length);
    }

    /// <summary>Frees the memory; when another thread is in a call of the group, as soon as that is over. Any number of times.</summary>
    /// <remarks>Steps over the cache then throw <see cref="ObjectDisposedException"/>; they may be disposed of before or after.</remarks>
    public void Dispose() => Tenancy.End();

    /// <summary>Throws when the cache cannot be used any more.</summary>
    /// <exception cref="ObjectDisposedException">It was disposed of.</exception>
    /// <exception cref="InvalidOperationException">A source of tokens is being read.</exception>
    internal void RequireUsable()
    {
        Tenancy.RequireLiving();
        RequireKept();
        if (_appender.IsReading)
        {
            throw new InvalidOperationException($"A step was run by the source of tokens that {nameof(AppendShard)} reads: it may read alone.");
        }
    }

    /// <summary>Nobody knows any more what the cache holds.</summary>
    internal void Lose(Exception reason) => Interlocked.CompareExchange(ref _lost, reason, null);

    private void RequireKept()
    {
        if (Volatile.Read(ref _lost) is { } reason)
        {
            throw new InvalidOperationException($"The cache was lost: {reason.Message} Dispose of it, and make and fill another one.", reason);
        }
    }

    private void Close()
    {
        _writer.Dispose();
        _mover.Dispose();
        Contents.Dispose();
    }

    /// <summary>Appends tokens, where a step's input is given by it: they are only written into it.</summary>
    internal void Append(
        int layer, ReadOnlySpan<int> rows, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<int> depths, IStepInput? input) =>
        _appender.Append(layer, rows, key, value, depths, input);

    /// <summary>The same, where the step's input has the tokens.</summary>
    internal void Append(int layer, ReadOnlySpan<int> rows, Region key, Region value, ReadOnlySpan<int> depths, IStepInput? input) =>
        _appender.Append(layer, rows, key, value, depths, input);

    /// <summary>Makes room for as many tokens in one append, which then allocates nothing.</summary>
    internal void PrepareAppend(int tokens) => _writer.Prepare(tokens);

    /// <summary>This rank owns a page.</summary>
    internal bool IsOwn(int page) => Pages.OwnerOf(page) == _rank;

    /// <summary>Pages of this rank among the first positions.</summary>
    internal int OwnPages(int length)
    {
        int pages = 0;
        foreach (int lane in Lanes)
        {
            long first = (long)LaneTree.FirstPageOf(lane) * PageSpan.Keys;
            pages += first >= length ? 0 : (int)((length - first + (LaneTree.Lanes * PageSpan.Keys) - 1) / (LaneTree.Lanes * PageSpan.Keys));
        }

        return pages;
    }

    // The calls that change the cache. Inside a source's Read the writer's memory is in use.
    private RankDoor.Visit Enter(string call)
    {
        RankDoor.Visit visit = Tenancy.Enter(call);
        try
        {
            RequireKept();
            return _appender.IsReading
                ? throw new InvalidOperationException($"{call} was called by the source of tokens that {nameof(AppendShard)} reads: it may read alone.")
                : visit;
        }
        catch
        {
            visit.Dispose();
            throw;
        }
    }

    private void Prepare(int rank, int source, int slot)
    {
        if (rank == _rank)
        {
            Contents.Prepare(source, slot);
        }
    }
}

/// <summary>How large the values of a cache are, over all ranks and layers: what sums of numerators need to know.</summary>
/// <param name="options">Storage type and scales.</param>
internal sealed class ValueBound(CacheOptions options)
{
    /// <summary>[1] the largest value so far, NaN where it is not known: every rank has the same. The array stays the same.</summary>
    public PageLimits[] Limits { get; } = [default];

    /// <summary>Values of tokens that every rank has seen were stored.</summary>
    public void Measure(ReadOnlySpan<float> values)
    {
        if (values.Length > 0)
        {
            // Storing may round up.
            float largest = MathF.Abs(TensorPrimitives.MaxMagnitude(values));
            float scale = options.Scales is { } scales ? TensorPrimitives.Max<float>(scales.OfStorage(options.ValuesInKeys)) : 1f;
            var type = StorageType.Of(options.Type);
            Raise((largest * type.Growth) + (scale * type.GrowthOfScale));
        }
    }

    /// <summary>Stored values, known to every rank, are as large as this.</summary>
    public void Raise(float largest) => Limits[0] = new PageLimits(float.NaN, MathF.Max(Limits[0].LargestValue, largest));

    /// <summary>Values were stored that not every rank has seen.</summary>
    public void Forget() => Limits[0] = new PageLimits(float.NaN, float.NaN);

    /// <summary>Finds the largest of all ranks. Every rank calls it.</summary>
    /// <param name="control">The control plane of the ranks.</param>
    /// <param name="mine">The largest value that this rank stores.</param>
    public void Share(IControlPlane control, float mine)
    {
        byte[] bytes = new byte[sizeof(float)];
        BinaryPrimitives.WriteSingleLittleEndian(bytes, mine);
        foreach (byte[] theirs in control.AllGather(bytes))
        {
            mine = MathF.Max(mine, BinaryPrimitives.ReadSingleLittleEndian(theirs));
        }

        Limits[0] = new PageLimits(float.NaN, mine);
    }
}
