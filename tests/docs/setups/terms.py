from __future__ import annotations

from tests.docs.setup import Setup

SETUPS = {"states": Setup(picture=True), "times": Setup(picture=True)}
