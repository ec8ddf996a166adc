using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention;

/// <summary>Which positions of an axis each rank owns. Every position has one owner; nothing is padded.</summary>
public abstract class ShardLayout
{
    /// <summary>The first n mod p ranks own one key more than the others; ranks own neighbouring keys.</summary>
    public static ShardLayout Contiguous { get; } = new ContiguousLayout();

    /// <summary>2p chunks; rank r owns chunks r and 2p-1-r, so that causal work is balanced (Striped/zigzag ring attention).</summary>
    public static ShardLayout Zigzag { get; } = new ZigzagLayout();

    /// <summary>Key i belongs to rank i mod p (Striped Attention, arXiv 2311.09431).</summary>
    public static ShardLayout Striped { get; } = new CyclicLayout("striped", 1);

    /// <summary>Pages of 512 keys dealt to 256 lanes (<see cref="LaneTree"/>); rank r owns lanes [256 r / p, 256 (r+1) / p).</summary>
    public static ShardLayout Lanes { get; } = new LanesLayout();

    /// <summary>
    /// The lanes of packed sequences, whose pages count from each one's own first key: which keys each rank gives to a call that is to
    /// be reproducible.
    /// </summary>
    /// <param name="packedKeys">[sequences + 1] as <see cref="AttentionOptions.PackedKeys"/>.</param>
    public static ShardLayout LanesOf(IReadOnlyList<int> packedKeys) => new SequenceLanesLayout([.. packedKeys]);

    /// <summary>Pages lie on lanes.</summary>
    internal virtual bool IsLanes => false;

    /// <summary>The name users write: <c>contiguous</c>, <c>cyclic:16</c>, <c>lengths:10,0,21</c>.</summary>
    public abstract string Name { get; }

    /// <summary>Blocks of <paramref name="block"/> keys dealt to the ranks in turn.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A block has less than one key.</exception>
    public static ShardLayout Cyclic(int block)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(block, 1);
        return new CyclicLayout($"cyclic:{block}", block);
    }

    /// <summary>Neighbouring keys, as many as given for each rank; 0 is an empty shard.</summary>
    public static ShardLayout Lengths(IReadOnlyList<int> lengths)
    {
        ArgumentNullException.ThrowIfNull(lengths);
        return new LengthsLayout(lengths);
    }

    /// <summary>Reads <c>contiguous</c>, <c>zigzag</c>, <c>striped</c>, <c>lanes</c> or <c>cyclic:N</c>.</summary>
    /// <exception cref="FormatException">The text is none of these.</exception>
    public static ShardLayout Parse(string text) => text switch
    {
        null => throw new ArgumentNullException(nameof(text)),
        "contiguous" => Contiguous,
        "zigzag" => Zigzag,
        "striped" => Striped,
        "lanes" => Lanes,
        _ when text.StartsWith("cyclic:", StringComparison.Ordinal)
            && int.TryParse(text.AsSpan(7), NumberStyles.None, CultureInfo.InvariantCulture, out int block)
            && block > 0 => Cyclic(block),
        _ => throw new FormatException(
            $"'{text}' is no shard layout; there are contiguous, zigzag, striped, cyclic:N with N >= 1, and lanes."),
    };

    /// <summary>The keys of <paramref name="rank"/> in storage order. Runs without keys are left out.</summary>
    /// <param name="rank">0 to <paramref name="ranks"/> - 1.</param>
    /// <param name="ranks">Ranks that share the axis.</param>
    /// <param name="length">Length of the axis.</param>
    /// <exception cref="ShapeMismatchException">The layout does not fit the length or the ranks.</exception>
    internal abstract IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length);

    /// <summary>Number of keys of <paramref name="rank"/>.</summary>
    public int CountOf(int rank, int ranks, int length) => RunsOf(rank, ranks, length).Sum(run => run.Count);

    /// <summary>The positions of <paramref name="rank"/>'s keys, in the order in which it stores and gives them.</summary>
    /// <param name="rank">0 to <paramref name="ranks"/> - 1.</param>
    /// <param name="ranks">Ranks that share the axis.</param>
    /// <param name="length">Length of the axis.</param>
    /// <exception cref="ShapeMismatchException">The layout does not fit the length or the ranks.</exception>
    public int[] PositionsOf(int rank, int ranks, int length) =>
        [.. RunsOf(rank, ranks, length).SelectMany(run => Enumerable.Range(0, run.Count).Select(run.PositionAt))];

    /// <summary>The keys of <paramref name="rank"/>, cut into pages.</summary>
    internal IReadOnlyList<PageSpan> PagesOf(int rank, int ranks, int length)
    {
        var pages = new List<PageSpan>();
        foreach (KeyRun run in RunsOf(rank, ranks, length))
        {
            for (int offset = 0; offset < run.Count; offset += PageSpan.Keys)
            {
                pages.Add(new PageSpan(run, offset, Math.Min(PageSpan.Keys, run.Count - offset)));
            }
        }

        return pages;
    }

    /// <inheritdoc/>
    public override string ToString() => Name;

    private protected static KeyRun Share(int index, int parts, int length)
    {
        int first = (int)(((long)index * (length / parts)) + Math.Min(index, length % parts));
        return KeyRun.Contiguous(first, (length / parts) + (index < length % parts ? 1 : 0));
    }

    private protected static IReadOnlyList<KeyRun> WithKeys(params IEnumerable<KeyRun> runs) => [.. runs.Where(run => run.Count > 0)];

    private sealed class ContiguousLayout : ShardLayout
    {
        public override string Name => "contiguous";

        internal override IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length) => WithKeys(Share(rank, ranks, length));
    }

    private sealed class ZigzagLayout : ShardLayout
    {
        public override string Name => "zigzag";

        internal override IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length) =>
            WithKeys(Share(rank, 2 * ranks, length), Share((2 * ranks) - 1 - rank, 2 * ranks, length));
    }

    private sealed class CyclicLayout(string name, int block) : ShardLayout
    {
        public override string Name => name;

        internal override IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length)
        {
            long first = (long)rank * block;
            if (first >= length)
            {
                return [];
            }

            long stride = Math.Min((long)ranks * block, int.MaxValue);
            var run = new KeyRun((int)first, int.MaxValue, (int)Math.Min(block, stride), (int)stride);
            return WithKeys(run with { Count = run.CountBelow(length) });
        }
    }

    private sealed class LengthsLayout(IReadOnlyList<int> lengths) : ShardLayout
    {
        public override string Name => $"lengths:{string.Join(',', lengths)}";

        internal override IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length)
        {
            if (lengths.Count != ranks || lengths.Sum(count => (long)count) != length || lengths.Any(count => count < 0))
            {
                throw new ShapeMismatchException(
                    $"{Setting.ShardLengths} {string.Join(',', lengths)} gives {lengths.Count} ranks {lengths.Sum(count => (long)count)} keys, "
                    + $"but there are {ranks} ranks and {length} keys: one length of at least 0 for each rank, together the key length.");
            }

            return WithKeys(KeyRun.Contiguous(lengths.Take(rank).Sum(), lengths[rank]));
        }
    }

    private sealed class LanesLayout : ShardLayout
    {
        public override string Name => "lanes";

        internal override bool IsLanes => true;

        // Pages lie lane by lane, ascending inside a lane: the order in which they are folded.
        internal override IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length)
        {
            var runs = new List<KeyRun>();
            foreach (int lane in LaneTree.LanesOf(rank, ranks))
            {
                for (long first = (long)LaneTree.FirstPageOf(lane) * PageSpan.Keys; first < length; first += LaneTree.Lanes * PageSpan.Keys)
                {
                    runs.Add(KeyRun.Contiguous((int)first, (int)Math.Min(PageSpan.Keys, length - first)));
                }
            }

            return runs;
        }
    }

    private sealed class SequenceLanesLayout(int[] bounds) : ShardLayout
    {
        public override string Name => $"lanes of {string.Join(',', bounds)}";

        internal override bool IsLanes => true;

        internal override IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length) => WithKeys(LanePages
            .Of([PresentTokens.Sequences(bounds)], rank, ranks, new int[LaneTree.Lanes + 1])[0]
            .Select(span => span.Run));
    }
}

/// <summary>A layout applied to each of several rows that lie one after the other on one axis: every rank has its share of every row.</summary>
/// <param name="inner">The layout of a row.</param>
/// <param name="bounds">[rows + 1] where each row begins, and the end.</param>
internal sealed class RowwiseLayout(ShardLayout inner, int[] bounds) : ShardLayout
{
    public override string Name => $"{inner.Name} of {bounds.Length - 1} rows";

    internal override IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length) =>
    [
        .. Enumerable.Range(0, bounds.Length - 1).SelectMany(row => inner
            .RunsOf(rank, ranks, bounds[row + 1] - bounds[row])
            .Select(run => run with { First = run.First + bounds[row] })),
    ];
}
