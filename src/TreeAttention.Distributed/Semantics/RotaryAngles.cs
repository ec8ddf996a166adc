using System;
using System.Numerics;

namespace TreeAttention.Distributed.Semantics;

/// <summary>cos and sin of the angles by which tokens turn: for the tokens at hand alone, not a table of all positions.</summary>
/// <remarks>
/// Angles are made in double on the host, so that they are exact to fp32 at every position, and the same for every device. A pair
/// (a, b) becomes (a·cos - b·sin, b·cos + a·sin); products are rounded before the addition.
/// </remarks>
internal sealed class RotaryAngles
{
    private readonly double[] _frequencies;
    private int[] _positions = [];
    private float[] _cosine = [];
    private float[] _sine = [];

    /// <summary>Angles of no token yet.</summary>
    /// <param name="options">Valid options.</param>
    public RotaryAngles(RotaryOptions options)
    {
        Options = options;
        _frequencies = options.Frequencies();
    }

    /// <summary>Which dimensions turn, and how.</summary>
    public RotaryOptions Options { get; }

    /// <summary>Tokens.</summary>
    public int Count { get; private set; }

    /// <summary>[tokens, dim / 2] in host memory.</summary>
    public ReadOnlySpan<float> Cosine => _cosine.AsSpan(0, Count * _frequencies.Length);

    /// <summary>[tokens, dim / 2] in host memory.</summary>
    public ReadOnlySpan<float> Sine => _sine.AsSpan(0, Count * _frequencies.Length);

    /// <summary>Takes the angles of tokens at these positions. Allocates when there are more than ever before; does nothing when they are those it has.</summary>
    public void Take(ReadOnlySpan<int> positions)
    {
        if (positions.SequenceEqual(_positions.AsSpan(0, Count)))
        {
            return;
        }

        Reserve(positions.Length);
        positions.CopyTo(_positions);
        Count = positions.Length;
        int place = 0;
        foreach (int position in positions)
        {
            foreach (double frequency in _frequencies)
            {
                (double sine, double cosine) = Math.SinCos(position * frequency);
                (_cosine[place], _sine[place]) = ((float)cosine, (float)sine);
                place++;
            }
        }
    }

    /// <summary>Makes room for the angles of as many tokens; those at hand are forgotten where there was none.</summary>
    public void Reserve(int tokens)
    {
        if (_positions.Length < tokens)
        {
            _positions = new int[tokens];
            _cosine = new float[tokens * _frequencies.Length];
            _sine = new float[tokens * _frequencies.Length];
            Count = 0;
        }
    }

    /// <summary>Turns a token's row in place, on the host.</summary>
    /// <param name="row">[head_dim]</param>
    /// <param name="token">The token's number, below <see cref="Count"/>.</param>
    public void Turn(Span<float> row, int token)
    {
        int pairs = _frequencies.Length;
        ReadOnlySpan<float> cosine = _cosine.AsSpan(token * pairs, pairs);
        ReadOnlySpan<float> sine = _sine.AsSpan(token * pairs, pairs);
        int pair = 0;
        if (!Options.Interleaved)
        {
            Span<float> first = row[..pairs];
            Span<float> second = row.Slice(pairs, pairs);
            for (; pair <= pairs - Vector<float>.Count; pair += Vector<float>.Count)
            {
                var a = new Vector<float>(first[pair..]);
                var b = new Vector<float>(second[pair..]);
                var cosines = new Vector<float>(cosine[pair..]);
                var sines = new Vector<float>(sine[pair..]);
                ((a * cosines) - (b * sines)).CopyTo(first[pair..]);
                ((b * cosines) + (a * sines)).CopyTo(second[pair..]);
            }
        }

        for (; pair < pairs; pair++)
        {
            ref float a = ref row[Options.Interleaved ? 2 * pair : pair];
            ref float b = ref row[Options.Interleaved ? (2 * pair) + 1 : pairs + pair];
            (a, b) = ((a * cosine[pair]) - (b * sine[pair]), (b * cosine[pair]) + (a * sine[pair]));
        }
    }
}
