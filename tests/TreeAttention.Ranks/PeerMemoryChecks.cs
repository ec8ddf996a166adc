using System;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Ranks;

/// <summary>Rounds of peer memory under stress.</summary>
internal static class PeerMemoryChecks
{
    /// <summary>Contents change every round, and every rank reads every slot whole. A slow rank now and then lets the others run ahead.</summary>
    internal static void Rounds(ITransport transport, int rounds)
    {
        const int bytes = 1003 * sizeof(int);
        using IPeerMemory memory = transport.SharePeerMemory(bytes)
            ?? throw new CheckFailedException("the ranks of one machine share no memory");
        Check.Equal(bytes, (int)memory.Mine.Bytes, "bytes of a slot");
        for (int round = 0; round < rounds; round++)
        {
            memory.Mine.AsSpan<int>().Fill(Pattern(transport.Rank, round));
            memory.Publish();
            if (round % 97 == transport.Rank)
            {
                System.Threading.Thread.Sleep(1);
            }

            memory.AwaitAll();
            for (int rank = 0; rank < transport.Size; rank++)
            {
                int stray = memory.SlotOf(rank).AsSpan<int>().IndexOfAnyExcept(Pattern(rank, round));
                Check.That(stray < 0, $"round {round}: element {stray} of rank {rank} is of another round");
            }

            memory.NextRound();
        }
    }

    private static int Pattern(int rank, int round) => (round * 64) + rank;
}
