"""How the site is built: `make docs`. Nothing is fetched while it is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pygments.lexers.shell import BashLexer

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aiolease  # noqa: E402 - the checkout's, whatever is installed

project = "aiolease"
author = "the aiolease authors"
copyright = author
release = aiolease.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"aiolease {release}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# A docstring's `name` is a link where the name is public, and code where it is not.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

# Every public name in a signature must lead somewhere. Not those of Python and of other packages, for which the network
# would be asked; nor those of the rooms inside, which `public_name` has not found at the door.
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(?!aiolease\b).*"),
    ("py:.*", r"aiolease\.(_|stores\.|testing\.T$).*"),
]

DOORS = (
    "aiolease",
    "aiolease.errors",
    "aiolease.events",
    "aiolease.metrics",
    "aiolease.testing",
    "aiolease.web",
)


def public_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Finds a name where it is public: a class is documented at the door, and defined in a room inside."""
    target = node.get("reftarget", "")
    python = env.domains["py"]
    for door in DOORS:
        for name in (target, target.rpartition(".")[2]):
            if f"{door}.{name}" in python.objects:
                return python.resolve_xref(env, node["refdoc"], app.builder, "obj", f"{door}.{name}", node, content)
    return None


def setup(app: Sphinx) -> None:
    """Teaches Sphinx where names are public, and the highlighter the language of our settings."""
    app.connect("missing-reference", public_name)
    app.add_lexer("env", BashLexer)
