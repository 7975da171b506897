"""The loop of a test in virtual time, its limit in real time, and an exception."""

from __future__ import annotations

import asyncio

from aiolease.testing import VirtualLoop

SOON = 5.0
"""Seconds of real time within which everything here has to happen."""


class Boom(Exception):
    pass


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running
