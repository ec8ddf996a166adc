namespace TreeAttention.Distributed;

/// <summary>The page slots of one rank: which are free, and how many rows share each. Every rank keeps those of all, and all agree.</summary>
internal sealed class PagePool
{
    private readonly int[] _free;
    private readonly int[] _users;

    /// <summary>A pool in which all slots are free; the lowest are given first.</summary>
    public PagePool(int slots)
    {
        _free = new int[slots];
        _users = new int[slots];
        Free = slots;
        for (int i = 0; i < slots; i++)
        {
            _free[i] = slots - 1 - i;
        }
    }

    /// <summary>All slots.</summary>
    public int Slots => _free.Length;

    /// <summary>Slots that no row uses.</summary>
    public int Free { get; private set; }

    /// <summary>Takes a free slot for one row.</summary>
    public int Take()
    {
        int slot = _free[--Free];
        _users[slot] = 1;
        return slot;
    }

    /// <summary>Rows that share a slot.</summary>
    public int UsersOf(int slot) => _users[slot];

    /// <summary>One more row shares the slot.</summary>
    public void Share(int slot) => _users[slot]++;

    /// <summary>A row does without the slot; nobody's slot is free.</summary>
    public void Release(int slot)
    {
        if (--_users[slot] == 0)
        {
            _free[Free++] = slot;
        }
    }
}
