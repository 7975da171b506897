"""Runs one Python block in a process of its own: its set-up, its text, and the set-up's assertions.

``python -m tests.docs.runner parts.json``; the file holds the page, the padded text, and where the set-up lies.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import json
import os
import sys
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.docs.setup import Stage


def function_of(path: str, name: str) -> Any:
    """The set-up, from its file: it need not be importable by name."""
    spec = importlib.util.spec_from_file_location("the_setup", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


async def in_loop(around: AbstractAsyncContextManager[None], text: str, page: str, names: dict[str, Any]) -> None:
    code = compile(text, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    async with around:
        result = eval(code, names)
        if code.co_flags & inspect.CO_COROUTINE:
            await result


def alone(around: AbstractContextManager[None], text: str, page: str, names: dict[str, Any]) -> None:
    code = compile(text, page, "exec", dont_inherit=True)
    with around:
        exec(code, names)


def main() -> None:
    page, text, path, name = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    del sys.argv[1:]
    names = sys.modules["__main__"].__dict__
    around = function_of(path, name)
    stage = Stage(names=names, folder=Path.cwd(), environment=os.environ)
    if inspect.isasyncgenfunction(around):
        asyncio.run(in_loop(asynccontextmanager(around)(stage), text, page, names))
    else:
        alone(contextmanager(around)(stage), text, page, names)


if __name__ == "__main__":
    main()
