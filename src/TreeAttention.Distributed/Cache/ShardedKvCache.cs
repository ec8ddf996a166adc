using System;
using System.Buffers.Binary;
using System.Linq;
using System.Numerics.Tensors;

namespace TreeAttention.Distributed;

/// <summary>A growing KV cache whose keys are dealt to the ranks by pages of 512 positions, in the lanes layout.</summary>
/// <remarks>
/// Every rank makes the same calls in the same order and keeps the same page table; a token's keys and values are stored by the
/// rank that owns its page. Because pages are dealt to 256 lanes, a growing row stays balanced: ranks differ by at most one page in
/// 256 where the number of ranks does not divide 256, and by a few pages while a row is short. Rows are independent: each has its
/// length, and may share pages with others. A layer's length is what was appended to that layer. Calls come from one thread.
/// </remarks>
public sealed class ShardedKvCache : IDisposable
{
    private readonly IDevice _device;
    private readonly int[] _lengths; // [layers, rows]
    private readonly int[] _starts;  // [rows] rotary position of the first token: what left padding takes
    private readonly int _rank;
    private readonly int _ranks;
    private readonly Action<int, int, int> _prepare;
    private readonly CacheWriter _writer;
    private readonly TokenMover _mover;
    private readonly int[] _allRows;
    private readonly int[] _ends; // [rows] scratch

    /// <summary>Makes an empty cache. Every rank calls it with the same options; the memory alone may differ.</summary>
    /// <param name="context">The rank.</param>
    /// <param name="options">Sizes and types.</param>
    /// <exception cref="ShapeMismatchException">The options describe no cache.</exception>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    public ShardedKvCache(RankContext context, CacheOptions options)
    {
        options.Validate();
        (_device, Options) = (context.Device, options);
        (_rank, _ranks) = options.Replicated ? (0, 1) : (context.Transport.Rank, context.Transport.Size);
        Lanes = [.. LaneTree.LanesOf(_rank, _ranks)];
        Pages = new CachePages(options.Rows, options.MostPages, CacheCapacity.Agree(context, options));
        Contents = new CacheContents(_device, options, Pages.FreeOn(_rank));
        _lengths = new int[options.Layers * options.Rows];
        _starts = new int[options.Rows];
        _prepare = (rank, source, slot) =>
        {
            if (rank == _rank)
            {
                Contents.Prepare(source, slot);
            }
        };
        _writer = new CacheWriter(this, _device);
        _mover = new TokenMover(this, context);
        _allRows = [.. Enumerable.Range(0, options.Rows)];
        _ends = new int[options.Rows];
    }

    /// <summary>Sizes and types.</summary>
    public CacheOptions Options { get; }

    /// <summary>Bytes of keys and values that this rank has room for, over all layers.</summary>
    public long Bytes => Contents.Plan.Bytes * Options.Layers;

    /// <summary>[1] the largest value of all ranks and layers so far, NaN where it is not known: every rank has the same.</summary>
    internal PageLimits[] Largest { get; } = [default];

    internal CachePages Pages { get; }

    internal CacheContents Contents { get; }

    /// <summary>Lanes of this rank, ascending.</summary>
    internal int[] Lanes { get; }

    /// <summary>This rank among those that share the keys.</summary>
    internal int Rank => _rank;

    /// <summary>Ranks that share the keys.</summary>
    internal int Ranks => _ranks;

    /// <summary>Tokens of a row that a layer holds.</summary>
    public int LengthOf(int layer, int row) => _lengths[(layer * Options.Rows) + row];

    /// <summary>Tokens of a row that the first layer holds.</summary>
    public int LengthOf(int row) => LengthOf(0, row);

    /// <summary>Rotary position of a row's first token: what its left padding takes; 0 without.</summary>
    public int LeftPaddingOf(int row) => _starts[row];

    /// <summary>Says that an empty row begins with padding, which is never stored: its first token gets this rotary position.</summary>
    /// <exception cref="InvalidOperationException">The row has tokens.</exception>
    public void PadLeft(int row, int padding)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(padding);
        if (Pages.LengthOf(row) > 0)
        {
            throw new InvalidOperationException($"Row {row} has {Pages.LengthOf(row)} tokens: left padding is said before the first.");
        }

        _starts[row] = padding;
    }

    /// <summary>Appends the same number of tokens to every row of a layer; every rank gives all of them.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="key">[rows, tokens, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[rows, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <inheritdoc cref="Append(int, ReadOnlySpan{int}, ReadOnlySpan{float}, ReadOnlySpan{float})" path="/exception"/>
    public void Append(int layer, ReadOnlySpan<float> key, ReadOnlySpan<float> value) => Append(layer, _allRows, key, value);

    /// <summary>Appends the same number of tokens to some rows of a layer; every rank gives all of them.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="rows">Different rows.</param>
    /// <param name="key">[rows given, tokens, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[rows given, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <exception cref="ShapeMismatchException">The keys or values are no whole tokens for each row.</exception>
    /// <exception cref="FaultException">The cache is full (71) or a number must not be stored (65), on every rank alike; nothing was stored.</exception>
    public void Append(int layer, ReadOnlySpan<int> rows, ReadOnlySpan<float> key, ReadOnlySpan<float> value)
    {
        Append(layer, rows, key, value, depths: []);
    }

    /// <summary>The same for the nodes of token trees, whose rotary positions are their depths behind the row's tokens.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="rows">Different rows.</param>
    /// <param name="key">[rows given, tokens, kv_heads, head_dim], not rotated.</param>
    /// <param name="value">[rows given, tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="depths">[rows given, tokens] depth of each node, 0 for a root; empty for tokens in a line.</param>
    /// <inheritdoc cref="Append(int, ReadOnlySpan{int}, ReadOnlySpan{float}, ReadOnlySpan{float})" path="/exception"/>
    public void Append(int layer, ReadOnlySpan<int> rows, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<int> depths) =>
        Append(layer, rows, key, value, depths, null);

    /// <summary>The same, where a step's input is given, which then stores the tokens: they are only written into it.</summary>
    internal void Append(
        int layer, ReadOnlySpan<int> rows, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<int> depths, IStepInput? input)
    {
        int tokens = TokensIn(rows.Length, key.Length, value.Length);
        RequireDepths(rows.Length, tokens, depths);
        _writer.RequireStorable(layer, rows, tokens, depths, key, value);
        Extend(layer, rows, tokens);
        key.CopyTo(input is null ? _writer.TakeKeys(rows.Length * tokens) : input.Keys);
        value.CopyTo(input is null ? _writer.TakeValues(rows.Length * tokens) : input.Values);
        _writer.Store(layer, rows, tokens, depths, input);
        Advance(layer, rows, tokens);
        Measure(Options.ValuesInKeys ? key : value);
    }

    /// <summary>Appends tokens whose keys and values lie in the device's memory, unchecked; every rank gives all of them.</summary>
    /// <inheritdoc cref="Append(int, ReadOnlySpan{int}, ReadOnlySpan{float}, ReadOnlySpan{float}, ReadOnlySpan{int})"/>
    public void Append(int layer, ReadOnlySpan<int> rows, Region key, Region value, ReadOnlySpan<int> depths = default)
    {
        int tokens = TokensIn(rows.Length, key.Count, value.Count);
        RequireDepths(rows.Length, tokens, depths);
        Extend(layer, rows, tokens);
        _writer.Store(layer, rows, tokens, depths, key, value);
        Advance(layer, rows, tokens);
        Largest[0] = new PageLimits(float.NaN, float.NaN);
    }

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
    public void AppendShard(int layer, int row, int tokens, ITokenSource source)
    {
        int first = LengthOf(layer, row);
        Extend(layer, [row], tokens);
        for (int position = first; position < first + tokens;)
        {
            int end = Math.Min(first + tokens, (position / PageSpan.Keys * PageSpan.Keys) + PageSpan.Keys);
            if (IsOwn(position / PageSpan.Keys))
            {
                int count = end - position;
                Span<float> keys = _writer.TakeKeys(count);
                Span<float> values = _writer.TakeValues(count);
                for (int i = 0; i < count; i++)
                {
                    source.Read(row, position + i, keys.Slice(i * Options.KeyFloats, Options.KeyFloats), values.Slice(i * Options.ValueFloats, Options.ValueFloats));
                }

                _writer.StoreAt(layer, row, position, count, source.IsRotated);
            }

            position = end;
        }

        Advance(layer, [row], tokens);
        Largest[0] = new PageLimits(float.NaN, float.NaN);
    }

    /// <summary>Tells every rank how large the values of all ranks are. Every rank calls it, after <see cref="AppendShard"/>.</summary>
    public void ShareLimits(IControlPlane control)
    {
        float largest = Contents.LargestValue();
        byte[] mine = new byte[sizeof(float)];
        BinaryPrimitives.WriteSingleLittleEndian(mine, largest);
        foreach (byte[] theirs in control.AllGather(mine))
        {
            largest = MathF.Max(largest, BinaryPrimitives.ReadSingleLittleEndian(theirs));
        }

        Largest[0] = new PageLimits(float.NaN, largest);
    }

    /// <summary>Takes the last tokens of a row away, in every layer.</summary>
    /// <param name="row">The row.</param>
    /// <param name="length">Tokens that stay; layers that have less keep what they have.</param>
    public void Truncate(int row, int length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        Pages.Truncate(row, length);
        for (int layer = 0; layer < Options.Layers; layer++)
        {
            ref int held = ref _lengths[(layer * Options.Rows) + row];
            held = Math.Min(held, length);
        }
    }

    /// <summary>Keeps some of the last tokens of a row, one after the other, and takes the rest of them away, in every layer. Every rank calls it.</summary>
    /// <remarks>Tokens keep the rotation that they were appended with: a path of a token tree, appended at its depths, then stands right.</remarks>
    /// <param name="row">The row.</param>
    /// <param name="first">Position of the first token that is not kept anyway.</param>
    /// <param name="kept">Which tokens stay, as ascending offsets from <paramref name="first"/>.</param>
    /// <exception cref="ShapeMismatchException">The offsets do not ascend, or some layer has no token there.</exception>
    /// <exception cref="FaultException">Pages that the row shares cannot be copied: the cache is full (71); nothing was changed.</exception>
    public void Keep(int row, int first, ReadOnlySpan<int> kept)
    {
        int length = LengthOf(0, row);
        for (int layer = 1; layer < Options.Layers; layer++)
        {
            length = Math.Min(length, LengthOf(layer, row));
        }

        for (int i = 0; i < kept.Length; i++)
        {
            if (first < 0 || kept[i] < 0 || kept[i] >= length - first || (i > 0 && kept[i] <= kept[i - 1]))
            {
                throw new ShapeMismatchException(
                    $"Row {row} keeps offsets {string.Join(',', kept.ToArray())} from {first} on, but they must ascend and lie inside its {length} tokens.");
            }
        }

        Pages.Detach(row, first, first + kept.Length, _prepare);
        for (int i = 0; i < kept.Length; i++)
        {
            if (kept[i] != i)
            {
                _mover.Move(row, first + kept[i], first + i);
            }
        }

        Truncate(row, first + kept.Length);
    }

    /// <summary>This rank stores the tokens at a position, of whichever row.</summary>
    public bool Owns(int position) => IsOwn(position / PageSpan.Keys);

    /// <summary>Reads a stored token back, on the rank that owns it.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="row">The row.</param>
    /// <param name="position">Position in the row.</param>
    /// <param name="key">[kv_heads, head_dim], rotated as it was stored.</param>
    /// <param name="value">[kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <returns>False on the other ranks, which get nothing.</returns>
    public bool TryRead(int layer, int row, int position, Span<float> key, Span<float> value)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(position);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(position, LengthOf(layer, row));
        if (!IsOwn(position / PageSpan.Keys))
        {
            return false;
        }

        _mover.Read(layer, row, position, key, value);
        return true;
    }

    /// <summary>Empties a row; its padding goes too.</summary>
    public void Release(int row)
    {
        Truncate(row, 0);
        _starts[row] = 0;
    }

    /// <summary>Makes a row begin with the first tokens of another one: their pages are shared until one of the rows writes to them.</summary>
    /// <param name="from">The row that has the tokens.</param>
    /// <param name="to">The row that gets them; what it held is released.</param>
    /// <param name="length">Tokens that are shared, at most those that every layer of the row has.</param>
    /// <exception cref="InvalidOperationException">The row has fewer tokens in some layer, or is forked into itself.</exception>
    public void Fork(int from, int to, int length)
    {
        for (int layer = 0; layer < Options.Layers; layer++)
        {
            if (from == to || length < 0 || length > LengthOf(layer, from))
            {
                throw new InvalidOperationException(
                    $"Row {to} cannot begin with {length} tokens of row {from}, which has {LengthOf(layer, from)} in layer {layer}.");
            }
        }

        Release(to);
        Pages.Fork(from, to, length);
        _starts[to] = _starts[from];
        for (int layer = 0; layer < Options.Layers; layer++)
        {
            _lengths[(layer * Options.Rows) + to] = length;
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _writer.Dispose();
        _mover.Dispose();
        Contents.Dispose();
    }

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

    private int TokensIn(int rows, long keyFloats, long valueFloats)
    {
        long tokens = rows == 0 ? 0 : keyFloats / Options.KeyFloats / rows;
        if (keyFloats != tokens * rows * Options.KeyFloats || valueFloats != tokens * rows * Options.ValueFloats || tokens > Options.MaxLength)
        {
            throw new ShapeMismatchException(
                $"{keyFloats} key and {valueFloats} value elements are not the same number of tokens for each of {rows} rows: a token has "
                + $"{Options.KvHeads} × {Options.HeadDim} key and {Options.ValueFloats} value elements, and a row at most {Options.MaxLength} tokens.");
        }

        return (int)tokens;
    }

    private static void RequireDepths(int rows, int tokens, ReadOnlySpan<int> depths)
    {
        if (depths.Length > 0 && depths.Length != rows * tokens)
        {
            throw new ShapeMismatchException($"{depths.Length} depths were given for {rows} rows × {tokens} tokens.");
        }
    }

    private void Extend(int layer, ReadOnlySpan<int> rows, int tokens)
    {
        for (int i = 0; i < rows.Length; i++)
        {
            long end = (long)LengthOf(layer, rows[i]) + tokens;
            if (end > Options.MaxLength)
            {
                throw new FaultException(
                    FaultCode.OutOfMemory,
                    $"The cache is full: row {rows[i]} has {LengthOf(layer, rows[i])} tokens and cannot take {tokens} more, for it ends at "
                    + $"{Options.MaxLength}. Nothing was stored. Truncate the row, or make the cache longer.")
                { IsAgreed = true };
            }

            _ends[i] = (int)end;
        }

        Pages.Extend(rows, _ends.AsSpan(0, rows.Length), _prepare);
    }

    private void Advance(int layer, ReadOnlySpan<int> rows, int tokens)
    {
        foreach (int row in rows)
        {
            _lengths[(layer * Options.Rows) + row] += tokens;
        }
    }

    // Storing may round up: f8e4m3 by at most 1 in 16 or half its smallest number, the others by less than 1 in 128.
    private void Measure(ReadOnlySpan<float> values)
    {
        if (values.Length > 0)
        {
            float largest = MathF.Abs(TensorPrimitives.MaxMagnitude(values));
            float scale = Options.Scales is { } scales ? TensorPrimitives.Max<float>(scales.OfStorage(Options.ValuesInKeys)) : 1f;
            largest = Options.Type == ElementType.Float8E4M3 ? (largest * 1.07f) + (scale / 1024) : largest * 1.01f;
            Largest[0] = new PageLimits(float.NaN, MathF.Max(Largest[0].LargestValue, largest));
        }
    }
}
