"""For probes and programs: whether this process is well, the status as JSON, the metrics."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from aiolease import Campaign
from aiolease._views.telling import status_facts
from aiolease.web.readings import Readings

_SILENT = 2
"""Leases for which a campaign may have heard nothing of its database."""


@final
class Health:
    """What probes and programs ask of one lease.

    Args:
        readings: Have the lease.
        metrics: See `status_app`.
    """

    def __init__(self, readings: Readings, metrics: Any) -> None:
        self._readings = readings
        self._metrics = metrics

    async def healthz(self, _: Request) -> Response:
        """200 whoever leads; 503 with the reason if this process's campaign is stuck, or the database.

        Of a campaign it is told from memory: no I/O.
        """
        campaign = self._readings.campaign
        if campaign is not None:
            problem = _stuck(campaign)
        else:
            latest = await self._readings.latest()
            problem = latest.problem
        return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)

    async def livez(self, _: Request) -> Response:
        """200 from every process whose event loop runs: one that is blocked does not answer at all."""
        return PlainTextResponse("ok\n")

    async def status(self, _: Request) -> Response:
        """The status as the command line gives it to programs; 503 while it is not known."""
        latest, campaign = await self._readings.latest(), self._readings.campaign
        facts: dict[str, Any] = {"name": self._readings.name}
        if latest.shown is not None:
            facts = status_facts(latest.shown.seen) | {"database": latest.shown.database, "age": round(latest.age, 3)}
        facts["problem"] = latest.problem or None
        facts["campaign"] = None
        if campaign is not None:
            status = campaign.status()
            facts["campaign"] = {
                "state": status.state,
                "leads": campaign.is_leader,
                "last_contact": status.last_contact,
                "error": status.error,
            }
        text = json.dumps(facts, default=datetime.isoformat)
        return Response(text, 200 if latest.shown is not None else 503, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """What `prometheus_client` has of this process, or of all processes in its multi-process mode."""
        try:
            from prometheus_client import REGISTRY, exposition

            from aiolease.metrics.by_prometheus import exposed
        except ModuleNotFoundError:
            return PlainTextResponse("prometheus_client is not installed: pip install 'aiolease[prometheus]'\n", 404)
        registry = getattr(self._metrics, "exposed", self._metrics)  # of a PrometheusMetrics, what it exposes
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        text = await run_in_threadpool(encode, registry or exposed(REGISTRY))
        return Response(text, headers={"Content-Type": content_type})


def _stuck(campaign: Campaign) -> str:
    """Why a campaign is stuck; empty if it is not. Jobs in trouble, or that nobody leads, are no reason."""
    status = campaign.status()
    if status.state in {"failed", "stopped"}:
        return f"the campaign for {campaign.name!r} has {status.state}: {status.error or 'it was told to stop'}"
    if status.last_contact is None:
        return f"the database has not answered yet: {status.error or 'it is being asked'}"
    silent = (datetime.now(UTC) - status.last_contact).total_seconds()
    if silent > _SILENT * campaign.lease_duration:
        return f"the database has not answered for {silent:.0f} s: {status.error or 'the campaign may hang'}"
    return ""
