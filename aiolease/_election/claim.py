"""What a candidate claims a lease with, and what it has won."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass

from aiolease.stores.records import Lease


def new_holder() -> str:
    """A unique identity for one attempt to claim: ``host-pid-uuid4hex``."""
    host = "".join(char if "!" <= char <= "~" else "?" for char in socket.gethostname())[:100] or "localhost"
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that was won.

    Attributes:
        lease: The row as it stood then.
        sent_at: The local clock just before the claim was sent, or earlier (`ClockHistory.setback`): the term's
            deadline counts from it.
        received_at: The local clock when the reading of the row had arrived.
        after_release: True if the term before it was released, or there was none; False if that is not known.
    """

    lease: Lease
    sent_at: float
    received_at: float
    after_release: bool = False


@dataclass(frozen=True, slots=True)
class StayOut:
    """A leader that resigned leaves the field to others: until another term was seen, or until a moment (rule 14)."""

    token: int
    until: float
