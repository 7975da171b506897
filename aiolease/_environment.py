"""Settings from the environment. A module of its own, imported when used: pydantic-settings costs 10 MB of memory."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from aiolease._lease import check_name
from aiolease._settings import OnStall, Timings
from aiolease.errors import ConfigurationError


class LeaseSettings(BaseSettings):
    """Settings of a worker, from environment variables that start with ``AIOLEASE_``.

    Read by the command line and the examples; the library reads no environment by itself. An application writes
    ``**LeaseSettings().options()``. All durations are seconds; ``None`` takes the default of `leadership`.

    Attributes:
        url: The database, from ``AIOLEASE_URL``; not in the `repr`, since it may hold a password.
        name: The lease.
        lease_duration: See `leadership`, as for the other timings.
        heartbeat_interval: See `leadership`.
        renew_deadline: See `leadership`.
        retry_interval: See `leadership`.
        on_stall: ``"log"`` or ``"exit"``.

    Raises:
        ConfigurationError: A variable is not of the right kind, or the timings cannot work.
    """

    model_config = SettingsConfigDict(env_prefix="AIOLEASE_", env_ignore_empty=True, frozen=True, extra="ignore")

    url: str = Field(default="sqlite:///aiolease.db", repr=False)
    name: str = "default"
    lease_duration: float = 30.0
    heartbeat_interval: float | None = None
    renew_deadline: float | None = None
    retry_interval: float | None = None
    on_stall: OnStall = "log"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = str(first["loc"][0]) if first["loc"] else "settings"
            value = "…" if field == "url" else first["input"]
            raise ConfigurationError(f"AIOLEASE_{field.upper()}", value, str(first["msg"])) from None
        try:
            check_name(self.name)
            Timings.make(**self._timings())
        except ConfigurationError as error:
            variables = ",".join(f"AIOLEASE_{field.upper()}" for field in error.field.split(","))
            raise ConfigurationError(variables, error.value, error.problem) from None

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
