"""The visitors of a shop: they fill carts, order, pay, wait for prices, and leave.

These are the requests that every copy of a web server serves, whoever leads.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import anyio
from loguru import logger

import shop_seed
from shop_database import ShopError, Transaction, as_text, insert

Transactions: TypeAlias = Callable[[], AbstractAsyncContextManager[Transaction]]


async def receive(transaction: Transactions, pause: float, visiting: anyio.CancelScope) -> None:
    """Has visitors come one after the other until the scope is cancelled; an error of the shop turns one away.

    Args:
        transaction: Opens a transaction on the shop's database.
        pause: Seconds between two visitors.
        visiting: The scope that ends the visits.
    """
    dice = random.Random()
    sessions: list[int] = []
    with visiting:
        while True:
            await asyncio.sleep(pause)
            try:
                sessions = [*sessions[-19:], await _welcome(transaction, dice)]
                await _shop_around(transaction, dice, dice.choice(sessions))
            except ShopError as error:
                logger.debug("a visitor was turned away: {}", error)


async def _welcome(transaction: Transactions, dice: random.Random) -> int:
    """A visitor comes and fills a cart; returns the new session."""
    async with transaction() as do:
        session = (await do.execute(*insert("shop_session", shop_seed.session(dice, await do.now())))).id
        for product in sorted(dice.sample(range(1, shop_seed.PRODUCTS + 1), dice.randint(0, 2))):
            item = {"session_id": session, "product_id": product, "quantity": 1}
            taken = await do.execute(
                "UPDATE shop_product SET stock = stock - 1 WHERE id = :id AND stock > 0", {"id": product}
            )
            if taken.count:
                await do.execute(*insert("shop_cart_item", item))
    return session


async def _shop_around(transaction: Transactions, dice: random.Random, session: int) -> None:
    """A visitor comes back, one buys, one pays, and a price changes."""
    # Each in a transaction of its own: whoever holds one lock waits for none, and no job meets a deadlock.
    async with transaction() as do:
        now = await do.now()
        seen = {"now": as_text(now), "id": session}
        await do.execute("UPDATE shop_session SET seen_at = :now WHERE id = :id AND ended_at IS NULL", seen)
    async with transaction() as do:
        await do.execute(*insert("shop_invoice", shop_seed.invoice(dice, now, oldest=100)))
    async with transaction() as do:
        await do.execute(*insert("shop_notification", shop_seed.notification(dice, now)))
    async with transaction() as do:
        paid = {"today": now.date().isoformat(), "id": dice.randint(1, 2000)}
        await do.execute("UPDATE shop_invoice SET paid_on = :today WHERE id = :id AND paid_on IS NULL", paid)
    product = dice.randint(1, shop_seed.PRODUCTS)
    async with transaction() as do:
        [[price]] = (await do.execute("SELECT list_price FROM shop_product WHERE id = :id", {"id": product})).rows
        new = {"price": int(price * dice.uniform(0.7, 1.05)), "id": product}
        await do.execute("UPDATE shop_product SET price = :price WHERE id = :id", new)
    async with transaction() as do:
        await do.execute(*insert("shop_price_alert", shop_seed.alert(dice, product, price)))
