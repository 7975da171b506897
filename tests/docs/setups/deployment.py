from __future__ import annotations

from collections.abc import Iterator

from tests.docs.databases import lead_pools_there
from tests.docs.setup import Setup, Stage


def of_the_shop(stage: Stage) -> Iterator[None]:
    lead_pools_there(stage)
    stage.environment["AIOLEASE_NAME"] = "shop"
    yield


SETUPS = {
    "the-program": Setup(
        around=of_the_shop, needs="mariadb", run=20.0, expect=("acquired leadership of 'shop' (term 1)",)
    ),
}
