from __future__ import annotations

from tests.docs.setup import Setup

SETUPS = {"the-life-of-a-term": Setup(picture=True), "the-life-of-a-tick": Setup(picture=True)}
