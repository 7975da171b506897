from __future__ import annotations

from collections.abc import Iterator

from tests.docs.setup import Setup, Stage
from tests.docs.workers import program_of

DJANGO = {
    "settings.py": "SECRET_KEY = 'secret'\nALLOWED_HOSTS = ['127.0.0.1']\nROOT_URLCONF = 'shop.urls'\n",
    "urls.py": """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("prices/", lambda request: HttpResponse("of today"))]
""",
}


def with_jobs(stage: Stage) -> Iterator[None]:
    program_of(stage, "docs/web.md", "in-a-web-application", "work.py")
    yield


def with_a_project(stage: Stage) -> Iterator[None]:
    """Of Django: its settings, and one view."""
    (stage.folder / "shop").mkdir()
    for name, text in DJANGO.items():
        (stage.folder / "shop" / name).write_text(text, encoding="utf-8")
    yield from with_jobs(stage)


SETUPS = {
    "fastapi": Setup(around=with_jobs, served=("/jobs/",)),
    "litestar": Setup(around=with_jobs, served=("/jobs/",)),
    "django": Setup(around=with_a_project, served=("/jobs/", "/prices/")),
    "aiohttp": Setup(around=with_jobs, served=("/", "/health")),
    "a-service-without-a-web-framework": Setup(around=with_jobs, served=("/",)),
}
