"""The commands that need the application itself: `run` serves its jobs, `next` tells when they fall due."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from aiolease._jobs.in_words import in_words, local_text, span, tick_text
from aiolease._jobs.job import Job
from aiolease._jobs.registry import JobRegistry
from aiolease.cli.lease import settings_of
from aiolease.cli.printing import print_json, print_line
from aiolease.errors import AioleaseError, ConfigurationError

_FIELD = "MODULE:REGISTRY"
_OURS = Path(__file__).parent.parent


def run(arguments: argparse.Namespace) -> int:
    """Imports an application and serves its jobs until SIGTERM or SIGINT."""
    registry = registry_of(arguments.application)
    url, _, options = settings_of(arguments)
    drain = arguments.drain_timeout
    asyncio.run(registry.serve(url, drain_timeout=drain, handle_signals=True, **options))
    return 0


def next_(arguments: argparse.Namespace) -> int:
    """Prints the coming ticks of an application's jobs, and what their schedules mean."""
    registry = registry_of(arguments.application)
    now = datetime.now(UTC)
    jobs = [job for _, job in sorted(registry.registered.items()) if arguments.job in {None, job.name}]
    if not jobs:
        problem = "it has no jobs" if arguments.job is None else f"it has no job {arguments.job!r}"
        raise ConfigurationError(_FIELD, arguments.application, problem)
    if arguments.json:
        print_json([_job_facts(job, now, arguments.number) for job in jobs])
        return 0
    for number, job in enumerate(jobs):
        if number:
            print_line("")
        print_line(f"{job.name}: {in_words(job.schedule)}")
        for tick in _ticks(job, now, arguments.number):
            print_line(f"  {_tick_line(tick, job.schedule.timezone, now)}")
    return 0


def _tick_line(tick: datetime, timezone: str, now: datetime) -> str:
    beside = local_text(tick, timezone)
    own = f" ({beside} {timezone})" if beside else ""
    return f"{tick:%a} {tick_text(tick)} UTC{own}, in {span((tick - now).total_seconds())}"


def _job_facts(job: Job, now: datetime, number: int) -> dict[str, object]:
    schedule = job.schedule
    return {
        "job": job.name,
        "schedule": schedule.expression,
        "timezone": schedule.timezone,
        "words": in_words(schedule),
        "ticks": [*_ticks(job, now, number)],
    }


def _ticks(job: Job, after: datetime, number: int) -> Iterator[datetime]:
    for _ in range(number):
        tick = job.schedule.next_after(after)
        if tick is None:
            return
        yield tick
        after = tick


def registry_of(application: str) -> JobRegistry:
    """The registry that ``MODULE:REGISTRY`` names; of a module that has one only, its name may be left out.

    Raises:
        ConfigurationError: There is no such module, or no such registry in it.
        AioleaseError: The module cannot be imported.
    """
    module_name, _, path = application.partition(":")
    if not module_name or module_name.endswith(".py") or "/" in module_name:
        example = f"{Path(module_name).stem or 'worker'}:{path or 'jobs'}"
        raise ConfigurationError(_FIELD, application, f"name a module as `import` does, such as {example}")
    module = _imported(module_name, application)
    if not path:
        found = {name: value for name, value in vars(module).items() if isinstance(value, JobRegistry)}
        if len({id(value) for value in found.values()}) != 1:
            names = f"it has {', '.join(sorted(found))}" if found else "it has none"
            raise ConfigurationError(_FIELD, application, f"name its JobRegistry, as {module_name}:jobs; {names}")
        return next(iter(found.values()))
    value: object = module
    for name in path.split("."):
        value = getattr(value, name, None)
    if not isinstance(value, JobRegistry):
        kind = f"no name {path!r}" if value is None else f"a {type(value).__name__} named {path!r}"
        raise ConfigurationError(_FIELD, application, f"{module_name!r} has {kind}: name its JobRegistry")
    return value


def _imported(name: str, application: str) -> ModuleType:
    """Imports a module, from the current folder first."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            problem = f"there is no module {error.name!r} in {Path.cwd()}, nor is one installed"
            raise ConfigurationError(_FIELD, application, problem) from None
        raise AioleaseError(_cannot_import(name, error)) from error
    except (Exception, SystemExit) as error:
        raise AioleaseError(_cannot_import(name, error)) from error


def _cannot_import(name: str, error: BaseException) -> str:
    """What an import raised, and where: the innermost line that is of no library."""
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((str(_OURS), "<frozen")) and "site-packages" not in frame.filename
    ]
    where = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
    return f"cannot import {name!r}: {type(error).__name__}: {error}{where}"
