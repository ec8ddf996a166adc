using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.Linq;
using System.Threading;

/// <summary>What rank 0 decides before each step: who is served, who waits, who is turned away.</summary>
/// <remarks>
/// A request is taken in while a row and enough pages are free; a queue that is full turns new ones away. When the pages run out all the same,
/// since answers grow, the youngest request gives its pages back and is read again later. One that its client cancels leaves at the next step.
/// </remarks>
internal sealed class Scheduler(Engine engine, Clients clients, double seconds)
{
    private const int LongestQueue = 12;

    private readonly LinkedList<Request> _queue = [];
    private readonly Dictionary<int, Request> _served = []; // by row
    private readonly List<int> _released = [];
    private readonly Stopwatch _clock = Stopwatch.StartNew();
    private Plan _plan = new([], [], []);
    private int _arrived, _turnedAway, _cancelled, _preempted, _tokens, _shared, _steps;

    /// <summary>Requests that have their whole answer.</summary>
    public List<Request> Answered { get; } = [];

    /// <summary>The next step's plan; while there is nothing to do it waits for a request.</summary>
    public Plan Next()
    {
        bool isOpen = Receive();
        while (isOpen && _served.Count == 0 && _queue.Count == 0 && _released.Count == 0)
        {
            Thread.Sleep(5);
            isOpen = Receive();
        }

        Cancel();
        int[] decoding = [.. _served.Where(served => served.Value.Tokens.Count > 0).Select(served => served.Key).Order()];
        while (!engine.Cache.HasRoomFor(decoding, 1))
        {
            int youngest = decoding.MaxBy(row => _served[row].Number);
            decoding = [.. decoding.Except([youngest])];
            _queue.AddFirst(Leave(youngest));
            _preempted++;
        }

        // Rows that leave now are free for the others' tokens in this step already; requests get them in the next. A prompt is read in a step of
        // its own: the pages that it takes would be missing where the others were counted on to find room.
        Admission[] admitted = _released.Count > 0 ? [] : Admit();
        decoding = admitted.Length > 0 ? [] : decoding;
        _plan = new Plan([.. _released], admitted, decoding, !isOpen && _served.Count == 0 && _queue.Count == 0 && _released.Count == 0);
        _released.Clear();
        return _plan;
    }

    /// <summary>Takes the tokens that a plan's rows made.</summary>
    public void Take(IReadOnlyList<Token> tokens)
    {
        _steps++;
        int[] rows = [.. _plan.Admitted.Select(admission => admission.Row), .. _plan.Decoding];
        foreach ((int row, Token token) in rows.Zip(tokens))
        {
            Request request = _served[row];
            request.Tokens.Add(token);
            _tokens++;
            if (request.Tokens.Count == request.Length)
            {
                Answered.Add(Leave(row));
            }
        }
    }

    /// <inheritdoc/>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{_arrived} requests: {Answered.Count} answered, {_cancelled} cancelled, {_turnedAway} turned away by a full queue; {_shared} began with a shared "
        + $"prefix, {_preempted} gave their pages back and were read again; {_tokens} tokens in {_steps} steps");

    // Takes requests in while the service is open.
    private bool Receive()
    {
        double now = _clock.Elapsed.TotalSeconds;
        foreach (Request request in now < seconds ? clients.ArrivedBy(now) : [])
        {
            _arrived++;
            if (_queue.Count < LongestQueue)
            {
                _queue.AddLast(request);
            }
            else
            {
                _turnedAway++;
            }
        }

        return now < seconds;
    }

    // One admission a step, so that those who are served do not wait for many prompts.
    private Admission[] Admit()
    {
        int row = Enumerable.Range(0, Engine.Slots).FirstOrDefault(slot => !_served.ContainsKey(slot), -1);
        if (row < 0 || _queue.First is not { } first)
        {
            return [];
        }

        // As if it had its prefix for itself: a page that rows share is copied when one of them writes to it.
        Request request = first.Value;
        if (_served.Count > 0 && !engine.Cache.HasRoomFor([row], request.Prompt.Length + request.Tokens.Count))
        {
            return [];
        }

        _queue.RemoveFirst();
        _served.Add(row, request);
        _shared += request.Prefix is null ? 0 : 1;
        return [new Admission(row, request.Prefix, [.. request.Own, .. request.Tokens.Select(token => token.Id)])];
    }

    private void Cancel()
    {
        foreach (Request request in _queue.Where(request => request.IsCancelled).ToArray())
        {
            _queue.Remove(request);
            _cancelled++;
        }

        foreach (int row in _served.Where(served => served.Value.IsCancelled).Select(served => served.Key).ToArray())
        {
            Leave(row);
            _cancelled++;
        }
    }

    private Request Leave(int row)
    {
        _released.Add(row);
        _served.Remove(row, out Request? request);
        return request!;
    }
}
