"""Who leads: the specification of the election, and the map of this wing.

States of a process, for one lease::

                   elected                    ended: expired, taken, ineligible, resigned
    candidate ───────────────▶ leading ─────────────────────────────────▶ unwinding
        ▲                         │ body returned                             │ body has ended
        │                         ▼                                           ▼
        └──────────────────── releasing ◀──────────────────────────────── releasing
          run_as_leader, serve, background          (a lease that was taken is not released)

The trust formula. ``t_send`` is the local clock just before a claim or a renewal was sent.

1. The leader acts until ``t_send + renew_deadline`` (25 s of a lease of 30 s).
2. The database lets another candidate in at ``t_send + lease_duration`` at the earliest: it reckons the expiry by its
   own clock, after the statement has arrived.
3. The 5 s between the two are the body's, to unwind. It is cancelled once, and once more after half of them. The lease
   is renewed until the body has ended.

The database's clock may be stepped. A candidate believes the row's expiry only as far as its own clock confirms it
(`sighting.Sighting`). A leader that saw the clock go back stops earlier (`sighting.ClockHistory`).

What may fail, and what follows:

- *A renewal fails, or its answer is lost.* It is tried again until the deadline. One success is enough.
- *The row shows another holder, or is gone.* The term ends at once.
- *The process stands still.* When it goes on, the deadline has passed, and the term ends before all else. What
  it sends to the database meanwhile is refused by the fence (`fencing`).
- *The event loop is blocked.* A thread reports the stack, or ends the process (`watchdog`).
- *The body does not end.* It is reported. The lease is kept for one more lease duration, then no longer.
- *The release fails.* The lease expires by itself.
- *The answer to a claim is lost.* If the row shows later that it was won, it is taken up, or given back.

Not promised: a frozen process or a blocking thread may run on for a while after its lease; what it sends to others than
the database is not fenced. After a crash nobody leads until the lease expires. A failover of the database that loses
the last claim can lose a term with it.

The rooms, from the door inwards:

- ``elect``: `leadership` and `run_as_leader`. ``campaign``: elected, lost, elected again. ``status``: how it stands.
  ``looks``: once per lease it looks whether all is well. ``vacancy``: for how long nobody has led; pure.
- ``candidate``: reads, waits, claims. ``claim``: what it claims with, and has won. ``health``: what this process learnt
  from the database, and whether its application calls it fit. ``sighting``: who may claim; pure.
- ``leader``: one term, from `Elected` to the release. ``heartbeat``: renews. ``body``: the user's block, and what
  leaves it. ``term``: the value that all of them share. ``watchdog``: the thread that sees a blocked loop.
- ``leadership``: the face of a term for its body. ``fencing``: its transactions.
- ``timings``: the durations, checked when they are made. ``signals``: SIGTERM and SIGINT.
"""
