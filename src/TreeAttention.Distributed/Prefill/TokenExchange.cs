using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Prefill;

/// <summary>Takes prompt tokens from the ranks that have them to those that own their pages, in one all-to-all, and stores them there.</summary>
/// <remarks>
/// Tokens travel as they were given, in fp32 and not rotated: the owner stores them as if they had been appended there, so their bits and
/// the limits of their pages are the same. A part of the all-to-all is the keys of its tokens, then their values; the own part stays where it is.
/// </remarks>
internal sealed class TokenExchange : IDisposable
{
    private readonly RankContext _context;
    private readonly ShardedKvCache _cache;
    private readonly List<(int Owner, int First, int Count)> _runs = []; // of this rank's tokens, by owner
    private readonly TokenGroup[] _arrivals; // [ranks] by source; the own ones are all tokens of this rank
    private readonly long[] _outgoingBytes;
    private readonly long[] _incomingBytes;
    private readonly Region _outgoing;
    private readonly Region _incoming;

    /// <summary>Plans the exchange.</summary>
    /// <param name="context">The rank.</param>
    /// <param name="cache">The cache.</param>
    /// <param name="tokensOf">The tokens of a rank, in its order.</param>
    public TokenExchange(RankContext context, ShardedKvCache cache, Func<int, IEnumerable<PromptToken>> tokensOf)
    {
        (_context, _cache) = (context, cache);
        (int rank, int ranks) = (context.Transport.Rank, context.Transport.Size);
        _arrivals = [.. Enumerable.Range(0, ranks).Select(source => new TokenGroup(
            cache, tokensOf(source).Where(token => source == rank || cache.Owns(token.Index))))];
        FindRuns(_arrivals[rank].Tokens);
        long tokenBytes = (long)(cache.Options.KeyFloats + cache.Options.ValueFloats) * sizeof(float);
        _outgoingBytes = new long[ranks];
        foreach ((int owner, _, int count) in _runs)
        {
            _outgoingBytes[owner] += count * tokenBytes;
        }

        _incomingBytes = [.. _arrivals.Select((group, source) => source == rank ? 0 : group.Tokens.Length * tokenBytes)];
        _outgoing = context.Device.Allocate(_outgoingBytes.Sum(), ElementType.Float32);
        _incoming = context.Device.Allocate(_incomingBytes.Sum(), ElementType.Float32);
    }

    /// <summary>Stores the tokens of all ranks in a layer. Every rank calls it; there is room.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="keys">[tokens of this rank, kv_heads, head_dim] fp32 in the device's memory, not rotated.</param>
    /// <param name="values">[tokens of this rank, kv_heads, value_dim]; empty when values lie in the keys.</param>
    public void Store(int layer, Region keys, Region values)
    {
        int rank = _context.Transport.Rank;
        if (_arrivals.Length > 1)
        {
            Pack(keys, values);
            _context.Control.Enter("all-to-all");
            _context.Transport.AllToAll(_outgoing, _outgoingBytes, _incoming, _incomingBytes);
            _context.Control.Leave();
        }

        _arrivals[rank].Store(_context.Device, layer, keys, values);
        long first = 0;
        for (int source = 0; source < _arrivals.Length; source++)
        {
            if (source == rank)
            {
                continue;
            }

            long keyFloats = (long)_arrivals[source].Tokens.Length * _cache.Options.KeyFloats;
            long valueFloats = (long)_arrivals[source].Tokens.Length * _cache.Options.ValueFloats;
            _arrivals[source].Store(_context.Device, layer, _incoming.Slice(first, keyFloats), _incoming.Slice(first + keyFloats, valueFloats));
            first += keyFloats + valueFloats;
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _context.Device.Free(_outgoing);
        _context.Device.Free(_incoming);
    }

    private void FindRuns(PromptToken[] mine)
    {
        var runs = new List<(int Owner, int First, int Count)>();
        for (int i = 0; i < mine.Length; i++)
        {
            int owner = _cache.Pages.OwnerOf(mine[i].Index / PageSpan.Keys);
            if (runs.Count > 0 && runs[^1].Owner == owner)
            {
                runs[^1] = runs[^1] with { Count = runs[^1].Count + 1 };
            }
            else
            {
                runs.Add((owner, i, 1));
            }
        }

        _runs.AddRange(runs.Where(run => run.Owner != _context.Transport.Rank).OrderBy(run => run.Owner)); // a stable order
    }

    private void Pack(Region keys, Region values)
    {
        (int keyFloats, int valueFloats) = (_cache.Options.KeyFloats, _cache.Options.ValueFloats);
        long at = 0;
        foreach (IGrouping<int, (int Owner, int First, int Count)> part in _runs.GroupBy(run => run.Owner))
        {
            at = Put(part, keys, keyFloats, at);
            at = Put(part, values, valueFloats, at);
        }
    }

    private long Put(IEnumerable<(int Owner, int First, int Count)> runs, Region tokens, int floats, long at)
    {
        foreach ((_, int first, int count) in runs)
        {
            long length = (long)count * floats;
            if (length > 0)
            {
                _context.Device.Copy(tokens.Slice((long)first * floats, length), _outgoing.Slice(at, length));
            }

            at += length;
        }

        return at;
    }

    /// <summary>Some tokens that lie together in memory, of which this rank stores those that it owns.</summary>
    private sealed class TokenGroup(ShardedKvCache cache, IEnumerable<PromptToken> tokens)
    {
        private readonly RotaryAngles? _angles = cache.Options.Rotary is { Dim: > 0 } rotary ? new RotaryAngles(rotary) : null;
        private TokenPlace[] _places = [];
        private int[] _positions = [];

        public PromptToken[] Tokens { get; } = [.. tokens];

        public void Store(IDevice device, int layer, Region keys, Region values)
        {
            if (Tokens.Length == 0)
            {
                return;
            }

            Locate();
            _angles?.Take(_positions);
            device.Append(new TokenBlock(keys, values, _places, Tokens.Length, _angles), cache.Contents[layer]);
        }

        // Pages are given when a prompt enters its first layer, and may be others for the next prompt.
        private void Locate()
        {
            (_places, _positions) = _places.Length == 0 ? (new TokenPlace[Tokens.Length], new int[Tokens.Length]) : (_places, _positions);
            for (int i = 0; i < Tokens.Length; i++)
            {
                (int row, int index) = Tokens[i];
                int page = index / PageSpan.Keys;
                _positions[i] = cache.TurnOf(row, index);
                _places[i] = cache.IsOwn(page) ? cache.Contents.PlaceOf(cache.Pages.SlotOf(row, page), index) : TokenPlace.Elsewhere;
            }
        }
    }
}
