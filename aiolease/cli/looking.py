"""The commands that only look: `status`, `check`, `runs`, `history`, `why`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from aiolease._jobs.in_words import span
from aiolease._jobs.why import why
from aiolease._views.lease import OpenLease
from aiolease._views.look import Seen, facts_of, look, wrong_with
from aiolease._views.telling import JOBS, RUNS, described, job_row, run_facts, run_row, status_facts
from aiolease.cli.lease import on_lease
from aiolease.cli.printing import print_json, print_line, print_table, print_wrong
from aiolease.errors import AioleaseError, ConfigurationError, InvalidJob
from aiolease.stores.records import RunRecord
from aiolease.stores.seen import Overview

_MOST = 10_000
"""So many rows are read to find the failed ones of one job."""


@on_lease
async def status(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Prints what is wrong, who leads, and how the jobs stand."""
    seen = await look(lease)
    if arguments.json:
        print_json(status_facts(seen))
        return 0
    if wrong := wrong_with(seen):
        for each in wrong:
            print_wrong(f"wrong     {each.text}{_more(each.command, arguments)}")
        print_line("")
    for label, text in described(seen):
        print_line(f"{label:<9} {text}" if label else text)
    if seen.jobs:
        print_line("")
        print_table(JOBS, (job_row(seen, job) for job in seen.jobs))
    return 0


def _more(command: str, arguments: argparse.Namespace) -> str:
    """A command to be copied, for the lease that was named."""
    if not command:
        return ""
    name = getattr(arguments, "lease", None) or arguments.name
    return f"   (aiolease {command}{f' --lease {name}' if name else ''})"


def check(arguments: argparse.Namespace) -> int:
    """Prints one line for a probe: whether all is well."""

    @on_lease
    async def looked(lease: OpenLease, _: argparse.Namespace) -> int:
        seen = await look(lease)
        found = [each.text for each in wrong_with(seen, failures=arguments.failures)]
        if seen.lease is None:
            found.insert(0, f"{seen.name!r} never had a leader")
        return _checked(found + _too_old(seen, dict(arguments.max_age)), arguments, seen)

    try:
        return looked(arguments)
    except ConfigurationError:
        raise
    except AioleaseError as error:
        return _checked([" ".join(str(error).split())], arguments)


def _checked(found: list[str], arguments: argparse.Namespace, seen: Seen | None = None) -> int:
    if arguments.json:
        print_json({"ok": not found, "wrong": found})
    elif found:
        print_line(f"NOT OK: {'; '.join(found)}")
    elif seen is not None and seen.lease is not None:
        length = span((seen.now - seen.lease.elected_at).total_seconds())
        jobs = "1 job in time" if len(seen.jobs) == 1 else f"{len(seen.jobs)} jobs in time"
        paused = sum(job.paused for job in seen.jobs)
        print_line(
            f"OK: {seen.lease.holder} leads {seen.name!r} for {length} (term {seen.lease.token}), {jobs}"
            f"{f', {paused} paused' if paused else ''}"
        )
    return 1 if found else 0


def _too_old(seen: Seen, ages: dict[str, float]) -> list[str]:
    """The jobs whose last success is older than somebody allows."""
    found = []
    for job, most in sorted(ages.items()):
        if job not in seen.overview.jobs:
            found.append(f"no leader of {seen.name!r} ever had a job {job!r}")
            continue
        success = seen.job_seen(job).last_success
        if success is None:
            found.append(f"{job!r} never succeeded")
        elif (age := (seen.now - success).total_seconds()) > most:
            found.append(f"the last success of {job!r} is {span(age)} ago, more than {span(most)}")
    return found


@on_lease
async def history(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Prints what became of a job's ticks, the newest last."""
    job = arguments.job
    rows = await lease.ask(lambda store: store.history(lease.name, job, limit=arguments.number))
    overview = await lease.ask(lambda store: store.overview(lease.name, [job]))
    if not rows and job not in overview.jobs:
        raise InvalidJob(job, f"no leader of {lease.name!r} ever had such a job")
    if arguments.json:
        print_json([run_facts(run) for run in rows])
    elif rows:
        zones = _zones(overview)
        print_table(RUNS, (run_row(run, overview.now, zones.get(job, "")) for run in rows))
    else:
        print_line(f"{job!r} of {lease.name!r} has not run yet")
    return 0


@on_lease
async def runs(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Prints what became of the ticks of all jobs, or of one, the newest last."""
    rows = await _runs(lease, arguments)
    if arguments.json:
        print_json([run_facts(run) for run in rows])
        return 0
    if rows:
        overview = await lease.ask(lambda store: store.overview(lease.name, sorted({run.job for run in rows})))
        zones = _zones(overview)
        cells = [(run.job, run_row(run, overview.now, zones.get(run.job, ""))) for run in rows]
        print_table((RUNS[0], "job", *RUNS[1:]), ((row[0], job, *row[1:]) for job, row in cells))
    else:
        which = "no run failed" if arguments.failed else "there are no runs"
        print_line(f"{which}{' since then' if arguments.since else ''}: {lease.name!r}")
    return 0


def _zones(overview: Overview) -> dict[str, str]:
    return {job: seen.record.timezone for job, seen in overview.jobs.items()}


async def _runs(lease: OpenLease, arguments: argparse.Namespace) -> list[RunRecord]:
    job, since, most = arguments.job, arguments.since, arguments.number
    if job is None:
        return await lease.ask(lambda store: store.runs(lease.name, failed=arguments.failed, since=since, limit=most))
    limit = most if not arguments.failed else max(_MOST, most)
    found = await lease.ask(lambda store: store.history(lease.name, job, limit=limit))
    if not found and job not in (await lease.ask(lambda store: store.overview(lease.name, [job]))).jobs:
        raise InvalidJob(job, f"no leader of {lease.name!r} ever had such a job")
    wanted = [
        run
        for run in found
        if (since is None or run.tick >= since) and (not arguments.failed or run.status in {"failed", "lost"})
    ]
    return wanted[-most:]


@on_lease
async def why_(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Prints why a job ran, or did not run, at a moment."""
    facts, moment = await facts_of(lease, arguments.job, arguments.moment)
    answer = why(facts, moment)
    if arguments.json:
        print_json({"lease": lease.name, "job": arguments.job, **asdict(answer)})
        return 0
    for sentence in answer.sentences:
        print_line(sentence)
    for command in answer.commands:
        print_line(f"  {command}")
    return 0
