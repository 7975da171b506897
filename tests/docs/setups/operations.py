from __future__ import annotations

from tests.docs.setup import Setup

SETUPS = {
    "what-to-alert-on-2": Setup(needs="mariadb"),
    "what-to-alert-on-3": Setup(needs="mariadb"),
    "what-to-alert-on-4": Setup(needs="postgresql"),
}
