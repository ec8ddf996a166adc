using System.Threading;

namespace TreeAttention.Communication;

/// <summary>A meeting of all ranks of a group; what each wrote before is what all read after.</summary>
internal sealed class RankBarrier(int ranks)
{
    private int _arrived;
    private int _meeting;

    /// <summary>Returns when every rank has called it.</summary>
    public void Meet(int rank, RankGate[] gates, GroupMembers members)
    {
        int meeting = Volatile.Read(ref _meeting);
        if (Interlocked.Increment(ref _arrived) == ranks)
        {
            _arrived = 0;
            Interlocked.Increment(ref _meeting);
            for (int other = 0; other < ranks; other++)
            {
                gates[other].Wake();
            }
        }
        else
        {
            gates[rank].WaitWhileEqual(ref _meeting, meeting, members, GroupMembers.Any);
        }
    }
}
