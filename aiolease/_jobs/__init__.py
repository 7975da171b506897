"""What runs: the life of a tick, and the map of this wing.

::

    schedule: when is the next tick?      Each turn of the runner:
          │
          ▼                               readings ──▶ planner ──▶ writing ──▶ runs
      next_ticks: it waits on a heap      the ledger   one plan    one batch   what was written
          │ the tick is due
          ▼
       claims ── due: is it run? ── no ─▶ skipped    one row; it grows while more are skipped (series)
          │ yes
          ├─ a place is free ───────────▶ running ◀─┐
          │                                         │ the job's turn (waiting_line)
          └─ none is, or an older run ──▶ queued ───┘ or, too late by then: skipped, lost
             of the job waits               ▲
                                            │ rerun_lost: at most five attempts
    running ─┬─ the function ends ──────▶ succeeded, failed      written with the next batch
             ├─ it fails, has retries ──▶ queued until its moment (later), then it is the job's turn
             ├─ a final transaction ────▶ succeeded              written by that transaction
             └─ its term ends ──────────▶ lost, or queued anew   written last, or by the next term

A batch is one fenced transaction: all of it takes effect or nothing. Only what was written is run.

What people ask for by hand is in the ledger, too. A run again, and the ticks of a backfill, are queued, and wait behind
all that is due (later). A request to cancel stays there until all that it is about has ended (cancels).

The door:

- ``registry``: `JobRegistry`. ``job``: a job as it is registered. ``run``: `JobRun`, what its function is given.
- ``terms``: the terms that a registry leads. ``rivals``: one registry to a lease. ``lookout``: a process that waits
  looks whether the leader runs its jobs.

The loop, which has all the I/O:

- ``runner``: read, plan, write, start; how a term begins and ends.
- ``readings``: what is read, and when. ``definitions``: new jobs, changed schedules. ``gone``: jobs that nobody has.
  ``cancels``, ``backfills``: what people ask for. ``tenure``: the row of the term.
- ``writing``: a plan's batch, and what follows. ``last_writes``: those of a term that ends. ``unwritten``: what the
  ledger does not know yet. ``ledger``: each exchange, with its time limit. ``pruning``: old rows.
- ``quarantine``: jobs whose rows are in the way of the others. ``trouble``: exchanges that fail.
- ``runs``: starts runs, and notes their ends. ``execution``: how one is called. ``threads``: where ``def`` jobs run.
  ``calls``: `leader_only`. ``ending``: all of it is cancelled and awaited.
- ``notices``, ``skips``: what is told.

The planner, which has no I/O:

- ``planner``: the plan of one turn, and what became of it. ``plan``: what is in it.
- ``job_state``: how a job stands. ``inventory``: what a whole reading makes of that.
- ``next_ticks``: the heap. ``claims``: ticks that are due. ``series``: skipped ticks. ``requests``: triggers, pauses.
- ``waiting_line``: whose turn it is. ``places``: how many may run. ``backlog``: queued runs that were not read yet.
  ``later``: runs that wait for their moment, and runs by hand.
- ``changed``: the ticks of a schedule that has changed.

Time, in pure functions:

- ``due``: run or skip, lost or run again. ``retries``: whether, and when, one that failed is tried again. ``backfill``:
  one portion of a backfill. ``pauses``: until when a job is paused. ``jitter``: a start that is delayed.
- ``schedule``: from a moment to ticks. ``cron``: what an expression may say.
  ``walls``: the readings of a clock that it names. ``stretches``: the time between two changes of that clock.
"""
