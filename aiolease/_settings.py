"""Settings from the environment. A module of its own, imported when used: pydantic-settings costs 10 MB of memory."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, ValidationError, field_serializer, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from aiolease._election.timings import OnStall, Timings
from aiolease._logging import emit
from aiolease._names import check_name
from aiolease.errors import ConfigurationError
from aiolease.events import Notice

_PREFIX = "AIOLEASE_"
_UNSET = (
    "not set: name the database that all copies share, as mysql://user:password@host:3306/database, "
    "as postgresql://user:password@host:5432/database, or as sqlite:////absolute.db if all run on one machine; "
    "the command line takes --url, too"
)

_told: set[str] = set()
"""Variables that nothing reads, and that this process has warned of."""


class _URL(str):
    """A URL that works as the text that it is, and whose `repr` shows nothing of it but its kind."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(_hidden(self))


def _hidden(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return f"{scheme}://…" if separator else "…"


class LeaseSettings(BaseSettings):
    """Settings of a worker, from environment variables that start with ``AIOLEASE_``.

    Read by the command line and the examples; the library reads no environment by itself. An application writes
    ``**LeaseSettings().options()``. All durations are seconds; ``None`` takes the default of `leadership`. A variable
    that starts so and is none of these is a WARNING that names it, once.

    Attributes:
        url: The database, from ``AIOLEASE_URL``; no default. A plain text for drivers; `repr` and `model_dump` hide it,
            since it may hold a password.
        name: The lease.
        lease_duration: See `leadership`, as for the other timings.
        heartbeat_interval: See `leadership`.
        renew_deadline: See `leadership`.
        retry_interval: See `leadership`.
        on_stall: ``"log"`` or ``"exit"``.

    Raises:
        ConfigurationError: ``AIOLEASE_URL`` is not set, a value is not of the right kind, or the timings cannot work.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        validate_default=True,
        hide_input_in_errors=True,
    )

    # Required. Written so, type checkers let a subclass be made without it.
    url: str = Field(default=..., repr=False)
    name: str = "default"
    lease_duration: float = 30.0
    heartbeat_interval: float | None = None
    renew_deadline: float | None = None
    retry_interval: float | None = None
    on_stall: OnStall = "log"

    def __init__(self, **values: Any) -> None:
        self._tell_of_unknown()
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refused(error.errors(include_url=False)[0]) from None
        try:
            check_name(self.name)
            Timings.make(**self._timings())
        except ConfigurationError as error:
            variables = ",".join(_variable(field) for field in error.field.split(","))
            raise ConfigurationError(variables, error.value, error.problem) from None

    @classmethod
    def _tell_of_unknown(cls) -> None:
        known = sorted(map(_variable, cls.model_fields))
        for variable in sorted(os.environ):
            if not variable.upper().startswith(_PREFIX) or variable.upper() in known or variable in _told:
                continue
            _told.add(variable)
            text = f"{variable} is none of the settings of aiolease, nothing reads it; they are {', '.join(known)}"
            emit(Notice(lease="", severity="WARNING", text=text))

    @field_validator("url")
    @classmethod
    def _keep_hidden(cls, url: str) -> str:
        return _URL(url)

    @field_serializer("url")
    def _hide(self, url: str) -> str:
        return _hidden(url)

    def _timings(self) -> dict[str, Any]:
        return {
            "lease_duration": self.lease_duration,
            "heartbeat_interval": self.heartbeat_interval,
            "renew_deadline": self.renew_deadline,
            "retry_interval": self.retry_interval,
        }

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `leadership`, `run_as_leader`, `serve` and `background`; not the target."""
        return {"name": self.name, "on_stall": self.on_stall, **self._timings()}


def _variable(field: str) -> str:
    return f"{_PREFIX}{field.upper()}"


def _refused(first: ErrorDetails) -> ConfigurationError:
    """What is wrong with the settings, without what may hold a password: the URL, or all values together."""
    field = str(first["loc"][0]) if first["loc"] else "settings"
    if first["type"] == "missing":
        return ConfigurationError(_variable(field), "", _UNSET if field == "url" else "not set")
    value = "…" if field == "url" or not first["loc"] else first["input"]
    return ConfigurationError(_variable(field), value, first["msg"])
