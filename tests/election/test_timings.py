"""Which timings are refused when they are made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiolease import ConfigurationError, leadership, run_as_leader
from aiolease.testing import MemoryStore, run_virtual, virtual_time

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"lease_duration": 0}, "lease_duration", "lease_duration=0: "),
        ({"lease_duration": -1.0}, "lease_duration", "lease_duration=-1.0: "),
        ({"lease_duration": float("nan")}, "lease_duration", "lease_duration=nan: "),
        ({"lease_duration": float("inf")}, "lease_duration", "lease_duration=inf: "),
        ({"lease_duration": 1e9}, "lease_duration", "lease_duration=1000000000.0: "),
        ({"lease_duration": "30"}, "lease_duration", "lease_duration='30': "),
        ({"lease_duration": True}, "lease_duration", "lease_duration=True: "),
        ({"lease_duration": None}, "lease_duration", "lease_duration=None: "),
        ({"heartbeat_interval": 0.0}, "heartbeat_interval", "heartbeat_interval=0.0: "),
        ({"heartbeat_interval": float("inf")}, "heartbeat_interval", "heartbeat_interval=inf: "),
        (
            {"heartbeat_interval": 13.0},
            "heartbeat_interval,renew_deadline",
            "heartbeat_interval=13 .*renew_deadline=25",
        ),
        ({"renew_deadline": 12.0}, "heartbeat_interval,renew_deadline", "heartbeat_interval=10 .*renew_deadline=12"),
        ({"renew_deadline": -3.0}, "renew_deadline", "renew_deadline=-3.0: "),
        ({"renew_deadline": 27.5}, "renew_deadline,lease_duration", "renew_deadline=27.5 .*lease_duration=30"),
        ({"retry_interval": 0}, "retry_interval", "retry_interval=0: "),
        ({"retry_interval": 31.0}, "retry_interval,lease_duration", "retry_interval=31 .*lease_duration=30"),
        ({"timeout": -1.0}, "timeout", "timeout=-1.0: "),
        ({"timeout": float("nan")}, "timeout", "timeout=nan: "),
        ({"timeout": float("inf")}, "timeout", "timeout=inf: "),
        ({"on_stall": "explode"}, "on_stall", "on_stall='explode': "),
        ({"name": ""}, "name", "name='': "),
        ({"name": "a b"}, "name", "name='a b': "),
        ({"name": "ä"}, "name", "name='ä': "),
        ({"name": "a\n"}, "name", r"name='a\\n': "),
        ({"name": "x" * 101}, "name", "name='x{101}': "),
    ],
    ids=repr,
)
def test_settings_are_checked_when_made(options: dict[str, Any], field: str, said: str) -> None:
    """A setting that cannot work is a `ConfigurationError` of the call itself, naming fields and values."""
    with pytest.raises(ConfigurationError, match=said) as raised:
        leadership(MemoryStore(), **options)
    assert raised.value.field == field
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("options", [{"lease_duration": -1.0}, {"renew_deadline": 29.0}, {"on_stall": "no"}])
@virtual_time
async def test_settings_of_a_campaign_are_checked_too(options: Any) -> None:
    """`run_as_leader` checks its settings before it does anything."""
    store = MemoryStore()
    with pytest.raises(ConfigurationError):
        await run_as_leader(store, lambda lead: asyncio.sleep(1), **options)
    assert store.sent == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lease_duration": 0.1},
        {"lease_duration": 10, "renew_deadline": 9},
        {"lease_duration": 0.3, "renew_deadline": 0.3 * 0.9},
        {"renew_deadline": 20.0},
        {"heartbeat_interval": 12.5},
        {"timeout": 0},
        {"timeout": 0.0},
        {"name": "!~" * 50},
    ],
    ids=repr,
)
def test_settings_at_the_edge_are_fine(options: dict[str, Any]) -> None:
    """What is just allowed is allowed."""

    async def main() -> None:
        async with leadership(MemoryStore(), **options) as lead:
            assert lead.is_leader

    run_virtual(main())
