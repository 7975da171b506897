"""The status page: an application to be mounted in another, or served alone by `aiolease page`.

* `app`: `status_app`, its routes, and the headers of every answer;
* `pages`: the page of the lease and those of its jobs; `templates` and `static` are what they are made of;
* `actions`: what a person asks for on a page, and who may;
* `health`: for probes and programs: ``/healthz``, ``/livez``, ``/status.json``, ``/metrics``;
* `readings`: the one reading that all open pages share;
* `drawing`: small pictures.

It needs the extra ``web``; `static/htmx.min.js` is htmx 2.0.11, as its authors publish it. Nothing of it touches the
election: what is shown is read as the command line reads it.
"""

from __future__ import annotations

try:
    from aiolease.web.app import status_app
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in {"jinja2", "markupsafe", "starlette"}:
        raise
    raise ModuleNotFoundError(
        f"the status page needs {error.name}: pip install 'aiolease[web]'", name=error.name
    ) from error

__all__ = ["status_app"]
