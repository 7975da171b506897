"""Keeps registries with other jobs off a lease within one process: only one of the two would ever run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from aiolease._jobs.job import Job
from aiolease.errors import ConfigurationError
from aiolease.stores import Target

_campaigning: dict[tuple[object, ...], list[Mapping[str, Job]]] = {}
"""The jobs of each registry that campaigns in this process, by loop, target and lease."""


@contextmanager
def alone_on(target: Target, name: str, jobs: Mapping[str, Job]) -> Iterator[None]:
    """Notes that a registry campaigns for a lease while the block runs.

    Raises:
        ConfigurationError: Other jobs campaign for it already.
    """
    key = (id(asyncio.get_running_loop()), target if isinstance(target, str) else id(target), name)
    others = _campaigning.setdefault(key, [])
    for other in others:
        if differing := sorted(other.keys() ^ jobs.keys()):
            problem = (
                "a registry with other jobs campaigns for it in this process, and only one of the two would run: "
                "use one registry, or `run` both in one term, or two leases; "
                f"only one has {', '.join(differing[:20])}"
            )
            raise ConfigurationError("name", name, problem)
    others.append(jobs)
    try:
        yield
    finally:
        del others[next(number for number, other in enumerate(others) if other is jobs)]
        if not others:
            _campaigning.pop(key, None)
