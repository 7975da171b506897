"""`page`: the status page alone, on uvicorn."""

from __future__ import annotations

import argparse

from aiolease.cli.lease import settings_of
from aiolease.cli.printing import print_line
from aiolease.errors import AioleaseError

_INSTALL = "pip install 'aiolease[web]' uvicorn"


def page(arguments: argparse.Namespace) -> int:
    """Serves the status page until Ctrl-C. It only shows: actions need an application that says who may."""
    url, name, _ = settings_of(arguments)
    try:
        import uvicorn

        from aiolease.web import status_app
    except ModuleNotFoundError as error:
        raise AioleaseError(f"`aiolease page` needs {error.name}: {_INSTALL}") from error
    app = status_app(url, name=name, refresh=arguments.refresh)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print_line(f"the page of {name!r} is at http://{host}:{arguments.port}/, until Ctrl-C")
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", server_header=False)
    return 0
