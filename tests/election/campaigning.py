"""Short questions about a campaign that runs behind an application."""

from __future__ import annotations

import asyncio

from aiolease import Campaign


def now() -> float:
    return asyncio.get_running_loop().time()


def state(campaign: Campaign) -> str:
    return campaign.status().state
