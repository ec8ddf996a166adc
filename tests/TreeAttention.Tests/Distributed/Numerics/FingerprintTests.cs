using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using Xunit;

namespace TreeAttention.Tests.Distributed.Numerics;

/// <summary>Fingerprints: of the bytes alone, however they come, and another for other bytes.</summary>
public sealed class FingerprintTests
{
    private static readonly byte[] _bytes = [.. Enumerable.Range(0, 83).Select(i => (byte)(i * 37))];

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    [InlineData(8)]
    [InlineData(11)]
    [InlineData(64)]
    public void Pieces_make_the_fingerprint_of_the_whole(int piece)
    {
        var fingerprint = new Fingerprint();

        foreach (byte[] part in _bytes.Chunk(piece))
        {
            fingerprint.Add(part);
        }

        Assert.Equal(Fingerprint.Of(_bytes), fingerprint.Value());
    }

    [Fact]
    public void One_bit_more_or_less_one_byte_and_another_order_change_both_halves()
    {
        List<byte[]> others = [[], [0], new byte[8], new byte[9], _bytes[1..], [.. _bytes, 0], [.. _bytes.Reverse()], _bytes];
        for (int bit = 0; bit < 8 * _bytes.Length; bit++)
        {
            byte[] changed = [.. _bytes];
            changed[bit / 8] ^= (byte)(1 << (bit % 8));
            others.Add(changed);
        }

        UInt128[] all = [.. others.Select(other => Fingerprint.Of(other))];

        Assert.Equal(all.Length, all.Select(one => (ulong)one).Distinct().Count());
        Assert.Equal(all.Length, all.Select(one => (ulong)(one >> 64)).Distinct().Count());
    }

    [Fact]
    public void Words_that_differ_in_their_upper_bits_alone_do_not_cancel_each_other()
    {
        byte[] high = new byte[64];
        UInt128[] all = [.. Enumerable.Range(0, 256).Select(pattern =>
        {
            for (int word = 0; word < 8; word++)
            {
                high[(8 * word) + 7] = (byte)((pattern >> word & 1) << 7);
            }

            return Fingerprint.Of(high);
        })];

        Assert.Equal(256, all.Select(one => (ulong)one).Distinct().Count());
        Assert.Equal(256, all.Select(one => (ulong)(one >> 64)).Distinct().Count());
    }
}
