namespace TreeAttention.Communication;

/// <summary>The tags of messages. Between two ranks messages of one tag keep their order; they need no more than that.</summary>
internal static class MpiTags
{
    /// <summary>Sends, receives and exchanges.</summary>
    internal const int Message = 1;

    /// <summary>Parts of an all-to-all, which must not meet a receive that was posted before it.</summary>
    internal const int AllToAll = 2;
}
