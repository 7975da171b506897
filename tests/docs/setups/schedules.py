from __future__ import annotations

from tests.docs.setup import Setup

SETUPS = {"cron": Setup(picture=True)}
