"""Makes the TLS context that a URL asks for. Parameters that contradict each other are refused.

Drivers read ``ssl_…`` parameters differently, and some verify nothing although a CA is named. So the context is made
here, and handed to the driver.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Mode = Literal["disabled", "required", "verify_ca", "verify_identity"]

_MODES: Mapping[str, Mode] = {
    "disabled": "disabled",
    "required": "required",
    "verify_ca": "verify_ca",
    "verify_identity": "verify_identity",
}
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_FILES = ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_cipher")
_TRANSIENT = frozenset({"UNEXPECTED_EOF_WHILE_READING", "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"})
PARAMETERS = ("ssl_mode", "ssl", "ssl_verify_cert", "ssl_check_hostname", *_FILES)


class TLSRefused(ValueError):
    """The parameters cannot work. The text says why, and shows no values except paths of files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The parameters as they were read; ``None`` for those that the URL does not have."""

    mode: Mode | None
    ssl: bool | None
    verify: bool | None
    name: bool | None
    files: Mapping[str, str]

    @property
    def names_ca(self) -> bool:
        return "ssl_ca" in self.files or "ssl_capath" in self.files


class Contexts:
    """Makes a context when it is first needed, and again only when one of its files has changed.

    Reading the system's CAs blocks the event loop for 40 ms, which would delay a renewal. If a certificate's file is
    replaced while the program runs, the next connection uses the new one.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext | None], files: Iterable[str]) -> None:
        self._make = make
        self._files = tuple(files)
        self._stamp: tuple[int | None, ...] | None = None
        self._context: ssl.SSLContext | None = None

    def get(self) -> ssl.SSLContext | None:
        """Returns the context; raises what `make` raises."""
        stamp = tuple(map(_changed_at, self._files))
        if stamp != self._stamp:
            self._context, self._stamp = self._make(), stamp
        return self._context


def _changed_at(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def contexts(parameters: Mapping[str, str]) -> Contexts:
    """As `make_context`, for all connections of a URL."""
    files = [parameters[key] for key in ("ssl_ca", "ssl_cert", "ssl_key") if key in parameters]
    return Contexts(lambda: make_context(parameters), files)


def make_context(parameters: Mapping[str, str]) -> ssl.SSLContext | None:
    """Makes the context that the ``ssl…`` parameters of a URL ask for; ``None`` for a connection without TLS.

    1. ``ssl_mode=disabled`` and ``ssl=false`` mean no TLS.
    2. ``ssl_mode=required``, ``ssl=true``, or only ``ssl_cert`` and ``ssl_key``, or only ``ssl_cipher``: TLS that
       verifies nothing.
    3. ``ssl_mode=verify_ca``, or ``ssl_check_hostname=false`` beside a CA: verifies the certificate, not the name.
    4. In all other cases, also where only a CA is named: certificate and name are verified. If no CA is named, the
       system's CAs verify.

    Raises:
        TLSRefused: A parameter contradicts another, has an unknown value, or names a file that cannot be used.
    """
    asked = _read(parameters)
    mode = _mode(asked)
    return None if mode is None or mode == "disabled" else _context(mode, asked.files)


def _read(parameters: Mapping[str, str]) -> _Asked:
    flags: dict[str, bool] = {}
    for key in ("ssl", "ssl_verify_cert", "ssl_check_hostname"):
        if key in parameters:
            if parameters[key].lower() not in _FLAGS:
                raise TLSRefused(f"{key} is neither true nor false")
            flags[key] = _FLAGS[parameters[key].lower()]
    mode = None
    if "ssl_mode" in parameters:
        mode = _MODES.get(parameters["ssl_mode"].lower())
        if mode is None:
            raise TLSRefused(f"ssl_mode is none of {', '.join(_MODES)}")
    files = {key: parameters[key] for key in _FILES if key in parameters}
    for key, value in files.items():
        if not value:
            raise TLSRefused(f"{key} is empty")
    return _Asked(
        mode=mode,
        ssl=flags.get("ssl"),
        verify=flags.get("ssl_verify_cert"),
        name=flags.get("ssl_check_hostname"),
        files=files,
    )


def _mode(asked: _Asked) -> Mode | None:
    """The mode that the parameters ask for; ``None`` if none of them is about TLS."""
    if asked.mode == "disabled" or asked.ssl is False:
        others = bool(asked.files) or asked.verify is True or asked.name is True
        if others or asked.ssl is True or asked.mode not in {None, "disabled"}:
            raise TLSRefused("TLS is switched off, and another parameter asks for it")
        return "disabled"
    if asked == _Asked(mode=None, ssl=None, verify=None, name=None, files={}):
        return None
    verifies = asked.names_ca or asked.mode in {"verify_ca", "verify_identity"}
    if asked.verify is False and (verifies or asked.name):
        raise TLSRefused("ssl_verify_cert=false, and another parameter asks to verify")
    if asked.mode == "required" and not verifies and (asked.verify or asked.name):
        raise TLSRefused("ssl_mode=required verifies nothing; use ssl_mode=verify_identity")
    if asked.mode == "verify_ca" and asked.name:
        raise TLSRefused("ssl_mode=verify_ca does not check the host's name; use ssl_mode=verify_identity")
    if asked.mode == "verify_identity" and asked.name is False:
        raise TLSRefused("ssl_mode=verify_identity checks the host's name; use ssl_mode=verify_ca")
    if not (verifies or asked.verify or asked.name):
        return "required"
    return "verify_ca" if asked.mode == "verify_ca" or asked.name is False else "verify_identity"


def _context(mode: Mode, files: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    if mode != "verify_identity":
        context.check_hostname = False
    if mode == "required":
        context.verify_mode = ssl.CERT_NONE
    ca, capath, cert, key, cipher = (files.get(name) for name in _FILES)
    if ca is not None:
        _load("ssl_ca", ca, lambda: context.load_verify_locations(cafile=ca))
        if not context.cert_store_stats()["x509"]:
            raise TLSRefused(f"ssl_ca={ca} holds no certificate")
    if capath is not None:
        if not os.path.isdir(capath):
            raise TLSRefused(f"ssl_capath={capath} is no folder")
        context.load_verify_locations(capath=capath)
    if mode != "required" and ca is None and capath is None:
        context.load_default_certs()
    if key is not None and cert is None:
        raise TLSRefused("ssl_key is given without ssl_cert")
    if cert is not None:
        # With an empty password: without one OpenSSL would ask for it at the terminal.
        where = cert if key is None else f"{cert}, ssl_key={key}"
        _load("ssl_cert", where, lambda: context.load_cert_chain(cert, key, password=""))
    if cipher is not None:
        # Ciphers without a certificate or without encryption are excluded, whatever the user's list allows.
        _load("ssl_cipher", cipher, lambda: context.set_ciphers(f"{cipher}:!aNULL:!eNULL"))
    return context


def _load(parameter: str, value: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise TLSRefused(f"{parameter}={value} cannot be used: {_reason(error)}") from None
    except OSError as error:
        raise TLSRefused(f"{parameter}={value} cannot be read: {error.strerror or error}") from None


def _reason(error: ssl.SSLError) -> str:
    return getattr(error, "reason", None) or str(error)


def final_failure(error: BaseException) -> str | None:
    """Why TLS failed, if waiting does not help; otherwise ``None``. Looks at an error of a driver and its causes.

    A connection that ends during the handshake is no final failure: the server may be going down.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the server's certificate is not accepted: {cause.verify_message or cause}"
        transient = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
        if isinstance(cause, ssl.SSLError) and not transient and _reason(cause) not in _TRANSIENT:
            return f"TLS cannot be agreed on: {_reason(cause)}"
        cause = cause.__cause__ or cause.__context__
    return None
