"""The lease that a command is about, as its arguments and the environment name it."""

from __future__ import annotations

import argparse
import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from aiolease._jobs.in_words import moment_text, one_line
from aiolease._names import check_name
from aiolease._views.lease import OpenLease
from aiolease.errors import ConfigurationError
from aiolease.stores import open_store

_OPTIONS = {"until": "--until", "since": "--since", "note": "--note", "tick": "TICK"}
"""The options behind the arguments of a store's methods."""


def on_lease(command: Callable[[OpenLease, argparse.Namespace], Awaitable[int]]) -> Callable[[argparse.Namespace], int]:
    """Makes a command that needs a lease one that takes its arguments only."""

    @functools.wraps(command)
    def run(arguments: argparse.Namespace) -> int:
        async def opened() -> int:
            async with open_lease(arguments) as lease:
                try:
                    return await command(lease, arguments)
                except ConfigurationError as error:
                    raise _of_the_option(error) from error

        if getattr(arguments, "job", None) is not None:
            check_name(arguments.job, "JOB")
        return asyncio.run(opened())

    return run


def _of_the_option(error: ConfigurationError) -> ConfigurationError:
    """What a store says of an argument, as of the option that people gave."""
    option = _OPTIONS.get(error.field)
    if option is None:
        return error
    value = moment_text(error.value) if isinstance(error.value, datetime) else one_line(str(error.value), 40)
    return ConfigurationError(option, value, error.problem)


@asynccontextmanager
async def open_lease(arguments: argparse.Namespace) -> AsyncIterator[OpenLease]:
    """Opens the lease that the arguments and the environment name. Who only looks makes no tables."""
    url, name, _ = settings_of(arguments)
    async with open_store(url, create_tables=False) as store:
        yield OpenLease(store, name)


def url_of(arguments: argparse.Namespace) -> str:
    """The database that the arguments or the environment name.

    Raises:
        ConfigurationError: There is none.
    """
    from aiolease._settings import LeaseSettings

    return (LeaseSettings() if arguments.url is None else LeaseSettings(url=arguments.url)).url


def settings_of(arguments: argparse.Namespace) -> tuple[str, str, dict[str, Any]]:
    """The database, the lease, and the timings that the arguments and the environment name.

    Raises:
        ConfigurationError: One of them cannot work, or there is no database.
    """
    from aiolease._settings import LeaseSettings

    settings = LeaseSettings() if arguments.url is None else LeaseSettings(url=arguments.url)
    given, option = getattr(arguments, "lease", None), arguments.name
    if given is not None and option is not None and given != option:
        raise ConfigurationError("--lease", option, f"{given!r} is named, too: name one lease")
    chosen = given if given is not None else option
    name = check_name(settings.name if chosen is None else chosen, "NAME")
    return settings.url, name, settings.options() | {"name": name}
