"""What the errors of PostgreSQL's drivers mean: by the server's five-letter code, which both carry."""

from __future__ import annotations

import re

from aiolease._tracebacks import hide_values
from aiolease.errors import AioleaseError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.events import describe
from aiolease.stores.network.tls import TLSRefused, final_failure
from aiolease.stores.postgresql.dialect import BEGUN_CHECK, CHECK_FAILED, FENCE_CHECK, STEP_CHECK

UNDEFINED_TABLE, UNDEFINED_COLUMN = "42P01", "42703"
DEADLOCK = "40P01"
CONFLICTS = frozenset({
    "40001",  # somebody changed the row since the transaction's snapshot
    DEADLOCK,
    "55P03",  # a lock was not to be had in time
})  # fmt: skip
INTERRUPTED = frozenset({"57014", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04"})
"""The statement, the session or the server was ended by somebody, or for being too slow or idle."""

HAS_FAILED = "25P02"
"""A statement of the transaction has failed, and with it the transaction."""

TOO_MUCH = "54000"
"""A limit of the server's, such as that of notifications which some session has not heard yet."""

DENIED = "42501"

_REJECTED = frozenset({
    "28000",  # no such user, or pg_hba.conf has no entry
    "28P01",  # a wrong password
    "3D000",  # no such database
    "3F000",  # no such schema
    DENIED,
    "0LP01",  # no right to give rights
    "0P000",  # no such role
})  # fmt: skip

POOLER = "08P01"
"""The one code of all that PgBouncer says itself, whether or not waiting mends it."""

# libpq gives no code for what a server says before the login is done; in the server's language, mostly this one.
_REFUSALS = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role \".*\" does not exist|"
    r"no such (database|user)|unsupported startup parameter|"
    r"database \".*\" does not exist|permission denied for database|is not permitted to log in|"
    r"does not support SSL|rejected SSL upgrade|certificate verify failed|SSL error: (?!unexpected eof)|"
    r"server certificate for .* does not match|root certificate file .* does not exist|"
    r"could not (load|read) .*certificate|invalid sslmode",
    re.IGNORECASE,
)


class Misconfigured(Exception):
    """The driver refuses its parameters, before anything is sent."""


class NoPrimary(Exception):
    """None of several hosts takes writes."""


def code_of(error: BaseException | None) -> str | None:
    """The server's code of an error; ``None`` if the server did not say it."""
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else None


def failed_check(error: BaseException | None) -> str | None:
    """Which check of ours raised an error: `FENCE_CHECK`, `STEP_CHECK`, `BEGUN_CHECK`, or none."""
    if code_of(error) == CHECK_FAILED:
        for name in (FENCE_CHECK, STEP_CHECK, BEGUN_CHECK):
            if f"{name}:" in str(error):
                return name
    return None


def refuses(error: BaseException | None) -> bool:
    """Whether an error says that the rows, or the values, are in the way, and not that the server is."""
    code = code_of(error)
    # Data that does not fit, a constraint, an exception that somebody's trigger raises.
    return code is not None and (code[:2] in {"22", "23", "P0"} or code == "44000")


def refuses_to_notify(error: BaseException | None) -> bool:
    """Whether an error may say that only the notification of a release is refused: its queue is full, or no right."""
    return code_of(error) in {"54000", DENIED}


def is_final(error: BaseException) -> bool:
    """Whether waiting will not mend what a driver reports."""
    if (code := code_of(error)) not in {None, POOLER}:
        return code in _REJECTED
    if isinstance(error, Misconfigured | TLSRefused | TypeError | ValueError):
        return True  # not from the server: a parameter that the driver does not take, a certificate's path
    return bool(_REFUSALS.search(str(error)))


def translate(store: str, error: BaseException) -> AioleaseError:
    """What a driver's error means to the caller. Whatever is not known to be final may pass.

    The driver's error will be the cause of this one, and its frames hold the password: nobody who logs them sees it.
    """
    if isinstance(error, AioleaseError):
        return error
    hide_values(error)
    code = code_of(error)
    text = describe(error) if code is None else f"{str(error).strip()} ({code})"
    if code in {UNDEFINED_TABLE, UNDEFINED_COLUMN}:
        return SchemaMissing(store, text)
    if (failure := final_failure(error)) is not None:
        return StoreRejected(store, failure)
    if is_final(error):
        return StoreRejected(store, text if code is not None else f"the driver cannot connect: {text}")
    return StoreUnavailable(store, text)


def denied(error: BaseException) -> bool:
    """Whether the user lacks a right."""
    return code_of(error) == DENIED


def has_ended(error: BaseException) -> bool:
    """Whether the server, or the network, has ended the connection."""
    code = code_of(error)
    if code is None:
        text = str(error)
        closed = "connection is closed" in text or "connection was closed" in text or "connection is lost" in text
        # asyncpg, between the server's last words and the end of the connection; nothing was sent.
        closed = closed or "cannot switch to state" in text
        return isinstance(error, OSError | EOFError) or closed or "server closed the connection" in text
    return code[:2] == "08" or code in {"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}
