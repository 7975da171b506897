"""What a shop is filled with on its first day: some thousand rows, the same for the same seed, but for their dates."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from shop_database import as_text

Row = dict[str, str | int | None]

CUSTOMERS: Final = 400
PRODUCTS: Final = 250

_FIRST: Final = "Ada Alan Barbara Dennis Edsger Frances Grace Hedy John Katherine Ken Leslie Margaret Radia".split()
_LAST: Final = "Allen Dijkstra Hamilton Hoare Hopper Johnson Lamarr Lamport Liskov Lovelace Perlman Ritchie".split()
_COLOUR: Final = "amber black blue cream green grey ivory olive red rose teal white".split()
_THING: Final = "apron basket blanket bowl candle clock cushion jug kettle lamp mirror mug scarf teapot vase".split()


def customer(dice: random.Random) -> Row:
    name = f"{dice.choice(_FIRST)} {dice.choice(_LAST)}"
    # One address in forty has not existed for a while: what is sent there comes back.
    host = "gone.example" if dice.random() < 0.025 else "mail.example"
    return {"name": name, "email": f"{name.lower().replace(' ', '.')}@{host}", "owed": 0, "overdue": 0}


def product(dice: random.Random, list_price: int) -> Row:
    title = f"{dice.choice(_COLOUR)} {dice.choice(_THING)}"
    return {"title": title, "list_price": list_price, "price": list_price, "stock": dice.randrange(20, 400)}


def alert(dice: random.Random, product_id: int, list_price: int) -> Row:
    """A customer who waits for a product to become cheaper."""
    return {
        "customer_id": dice.randint(1, CUSTOMERS),
        "product_id": product_id,
        "wanted": int(list_price * dice.uniform(0.5, 0.9)),
        "notified_at": None,
    }


def session(dice: random.Random, now: datetime, idle: timedelta = timedelta()) -> Row:
    """A session that nobody has used for up to `idle`."""
    seen = now - idle * dice.random()
    started = seen - timedelta(seconds=dice.uniform(5, 1200))
    return {
        "customer_id": dice.randint(1, CUSTOMERS),
        "started_at": as_text(started),
        "seen_at": as_text(seen),
        "ended_at": None,
    }


def invoice(dice: random.Random, now: datetime, oldest: int) -> Row:
    """An unpaid invoice that falls due at most `oldest` days ago, and at most 30 days from now."""
    due = now.date() - timedelta(days=dice.randint(-30, oldest))
    return {
        "customer_id": dice.randint(1, CUSTOMERS),
        "amount": dice.randrange(900, 60_000, 5),
        "due_on": due.isoformat(),
        "paid_on": None,
        "bucket": "not due",
        "reminded_at": None,
    }


def notification(dice: random.Random, now: datetime) -> Row:
    return {
        "customer_id": dice.randint(1, CUSTOMERS),
        "kind": "order",
        "about": dice.randrange(10_000, 99_999),
        "state": "queued",
        "attempts": 0,
        "due_at": as_text(now + timedelta(seconds=dice.uniform(-300, 60))),
        "sent_at": None,
    }


def first_day(seed: int, now: datetime) -> Iterator[tuple[str, list[Row]]]:
    """Gives every table's rows, in an order in which what is referred to is there before."""
    dice = random.Random(seed)
    yield "shop_customer", [{"id": n, **customer(dice)} for n in range(1, CUSTOMERS + 1)]
    prices = {n: dice.randrange(500, 25_000, 5) for n in range(1, PRODUCTS + 1)}
    yield "shop_product", [{"id": n, **product(dice, price)} for n, price in prices.items()]
    yield "shop_price_alert", [alert(dice, n, prices[n]) for n in dice.choices(list(prices), k=1200)]
    sessions = [{"id": n, **session(dice, now, timedelta(minutes=30))} for n in range(1, 401)]
    yield "shop_session", sessions
    carts = [(row["id"], item) for row in sessions for item in dice.sample(range(1, PRODUCTS + 1), dice.randint(0, 3))]
    yield (
        "shop_cart_item",
        [{"session_id": number, "product_id": item, "quantity": dice.randint(1, 3)} for number, item in carts],
    )
    # Whatever fell due before this week has been asked for already.
    week = (now.date() - timedelta(days=7)).isoformat()
    invoices = [invoice(dice, now, oldest=150) for _ in range(2000)]
    yield (
        "shop_invoice",
        [{**row, "reminded_at": as_text(now) if str(row["due_on"]) < week else None} for row in invoices],
    )
    yield "shop_notification", [notification(dice, now) for _ in range(300)]
