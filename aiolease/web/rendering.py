"""Makes answers of templates. Everything that a template shows is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

import aiolease

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals["version"] = aiolease.__version__


def render(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Makes the answer of a template."""
    return HTMLResponse(_environment.get_template(template).render(values), status)
