"""A small shop with the work that every shop has to do once, not once per copy of its server.

Customers walk through live sessions with carts, owe invoices, want to hear of falling prices, and are written to
through a queue. `Shop` holds the jobs on it as plain coroutines; it knows nothing of leases. `shop_database` runs its
SQL on SQLite, MySQL, MariaDB and PostgreSQL, `shop_seed` fills it on its first day, `shop_visitors` are its customers.
Amounts are in cents, moments in UTC.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import anyio
from loguru import logger

from shop_database import Database, ShopError, ShopUnreachable, Transaction, as_text, open_database
from shop_opening import open_doors
from shop_visitors import shop_around, welcome

__all__ = ["Letter", "Shop", "ShopError", "ShopUnreachable", "many", "open_shop"]

AGED: Final = """CASE WHEN due_on >= :today THEN 'not due' WHEN due_on >= :month THEN '0-30'
    WHEN due_on >= :two_months THEN '31-60' WHEN due_on >= :three_months THEN '61-90' ELSE '90+' END"""

KINDS: Final = {
    "order": "Thank you for your order no. {}",
    "price": "Product no. {} is as cheap as you wanted",
    "reminder": "Invoice no. {} has fallen due",
}
BATCH: Final = 500
ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What a notification says, and to whom.

    Attributes:
        notification: The notification's number.
        attempts: How often it was tried to deliver it.
        email: To whom it goes.
        subject: What it says.
    """

    notification: int
    attempts: int
    email: str
    subject: str

    @property
    def arrives(self) -> bool:
        """Whether it is accepted: not at an address that is gone, and not always at the first attempt."""
        return not self.email.endswith("@gone.example") and (self.notification + self.attempts) % 23 != 0


@asynccontextmanager
async def open_shop(
    url: str, *, seed: int = 1, session_timeout: timedelta = timedelta(minutes=15)
) -> AsyncIterator[Shop]:
    """Opens the shop in the database that `url` names; whoever uses it first creates and fills it.

    Args:
        url: ``sqlite:///file``, ``mysql://user:password@host:port/database`` or ``postgresql://…``.
        seed: What a new shop is filled with.
        session_timeout: For how long a session may idle before it ends.

    Raises:
        ShopError: The URL cannot be understood.
    """
    async with open_database(url) as database:
        yield Shop(database, seed, session_timeout)


class Shop:
    """The shop. Every method connects when it is called, and logs in one line what it did.

    Raises:
        ShopError: From every method: the database is not there, or refused a statement.
    """

    def __init__(self, database: Database, seed: int, session_timeout: timedelta) -> None:
        self._database = database
        self._session_timeout = session_timeout
        self._seed = seed
        self._whole = False
        self._opening = asyncio.Lock()

    async def close_stale_sessions(self) -> int:
        """Ends the sessions that nobody used for a while, and puts what lay in their carts back on the shelf."""
        async with self._transaction() as do:
            now = await do.now()
            mark = {"now": as_text(now)}
            closed = await do.execute(
                "UPDATE shop_session SET ended_at = :now WHERE ended_at IS NULL AND seen_at < :cutoff",
                {**mark, "cutoff": as_text(now - self._session_timeout)},
            )
            left = """SELECT item.session_id, item.product_id, item.quantity FROM shop_cart_item item
                JOIN shop_session session ON session.id = item.session_id WHERE session.ended_at = :now"""
            items = (await do.execute(left, mark)).rows
            back = Counter[int]()
            for _, product, quantity in items:
                back[product] += quantity
            # In the order of their ids, as everyone locks them.
            await do.execute_many(
                "UPDATE shop_product SET stock = stock + :quantity WHERE id = :id",
                [{"quantity": quantity, "id": product} for product, quantity in sorted(back.items())],
            )
            await do.execute(
                "DELETE FROM shop_cart_item WHERE session_id IN (SELECT id FROM shop_session WHERE ended_at = :now)",
                mark,
            )
        carts = len({session for session, _, _ in items})
        logger.info("closed {}, {} released", many(closed.count, "stale session"), many(carts, "cart"))
        return closed.count

    async def purge_sessions(self) -> int:
        """Deletes the sessions that ended a few time-outs ago."""
        async with self._transaction() as do:
            cutoff = as_text(await do.now() - 2 * self._session_timeout)
            purged = await do.execute("DELETE FROM shop_session WHERE ended_at < :cutoff", {"cutoff": cutoff})
        logger.info("purged {}", many(purged.count, "ended session"))
        return purged.count

    async def write_letters(self) -> list[Letter]:
        """Writes letters for the notifications that are due, for a few hundred at most. Changes nothing."""
        async with self._transaction() as do:
            due = await do.execute(
                """SELECT notification.id, attempts, email, kind, about FROM shop_notification notification
                JOIN shop_customer customer ON customer.id = customer_id
                WHERE state = 'queued' AND due_at <= :now ORDER BY due_at, notification.id LIMIT :batch""",
                {"now": as_text(await do.now()), "batch": BATCH},
            )
        await asyncio.sleep(0.02)  # it takes a while to write them
        return [
            Letter(notification=number, attempts=attempts, email=email, subject=KINDS[kind].format(about))
            for number, attempts, email, kind, about in due.rows
        ]

    async def post(self, letters: Sequence[Letter], connection: Any = None) -> int:
        """Posts letters and marks their notifications; what does not arrive is tried again, later and later.

        Args:
            letters: What is posted.
            connection: One of the database's driver, in a transaction that the caller commits; by default one of the
                shop's own.
        """
        done = Counter[str]()
        async with self._transaction(connection) as do:
            now = await do.now()
            outbox, marks = [], []
            for letter in letters:
                state = "sent" if letter.arrives else "queued" if letter.attempts + 1 < ATTEMPTS else "failed"
                done[state] += 1
                due = now + timedelta(seconds=5 * 2**letter.attempts) if state == "queued" else now
                sent = as_text(now) if state == "sent" else None
                marks.append({"id": letter.notification, "state": state, "due": as_text(due), "sent": sent})
                if sent is not None:
                    outbox.append(
                        {"id": letter.notification, "email": letter.email, "subject": letter.subject, "now": sent}
                    )
            await do.execute_many(
                """INSERT INTO shop_outbox (notification_id, email, subject, posted_at)
                VALUES (:id, :email, :subject, :now)""",
                outbox,
            )
            await do.execute_many(
                """UPDATE shop_notification SET state = :state, attempts = attempts + 1, due_at = :due, sent_at = :sent
                WHERE id = :id AND state = 'queued'""",
                marks,
            )
        logger.info(
            "posting {}, {} to be tried again, {} given up",
            *(many(done["sent"], "letter"), done["queued"], done["failed"]),
        )
        return done["sent"]

    async def debt_aging(self, today: date) -> int:
        """Moves unpaid invoices from bucket to bucket, adds up what is owed, and reminds of what fell due.

        Args:
            today: The date where the shop is.
        """
        days = {"today": 0, "month": 30, "two_months": 60, "three_months": 90}
        dates = {name: (today - timedelta(days=ago)).isoformat() for name, ago in days.items()}
        async with self._transaction() as do:
            mark = {"now": as_text(await do.now())}
            moved = await do.execute(
                f"UPDATE shop_invoice SET bucket = {AGED} WHERE paid_on IS NULL AND bucket <> {AGED}", dates
            )
            reminded = await do.execute(
                """UPDATE shop_invoice SET reminded_at = :now
                WHERE paid_on IS NULL AND reminded_at IS NULL AND bucket <> 'not due'""",
                mark,
            )
            await do.execute(
                """INSERT INTO shop_notification (customer_id, kind, about, state, attempts, due_at)
                SELECT customer_id, 'reminder', id, 'queued', 0, :now FROM shop_invoice WHERE reminded_at = :now""",
                mark,
            )
            await do.execute(
                """UPDATE shop_customer SET
                owed = (SELECT COALESCE(SUM(amount), 0) FROM shop_invoice
                    WHERE customer_id = shop_customer.id AND paid_on IS NULL),
                overdue = (SELECT COALESCE(SUM(amount), 0) FROM shop_invoice
                    WHERE customer_id = shop_customer.id AND paid_on IS NULL AND bucket <> 'not due')"""
            )
            [[overdue]] = (await do.execute("SELECT SUM(overdue) FROM shop_customer")).rows
        logger.info(
            "aged the debts: {} moved on, {} queued, {:,.2f} overdue",
            *(many(moved.count, "invoice"), many(reminded.count, "reminder"), int(overdue) / 100),
        )
        return moved.count

    async def price_alerts(self) -> int:
        """Queues a notification, once, for everyone who waited for a price that a product has now."""
        async with self._transaction() as do:
            mark = {"now": as_text(await do.now())}
            alerts = await do.execute(
                """UPDATE shop_price_alert SET notified_at = :now WHERE notified_at IS NULL
                AND wanted >= (SELECT price FROM shop_product WHERE id = shop_price_alert.product_id)""",
                mark,
            )
            await do.execute(
                """INSERT INTO shop_notification (customer_id, kind, about, state, attempts, due_at)
                SELECT customer_id, 'price', product_id, 'queued', 0, :now FROM shop_price_alert
                WHERE notified_at = :now""",
                mark,
            )
        logger.info("queued {}", many(alerts.count, "price alert"))
        return alerts.count

    @asynccontextmanager
    async def visitors(self, *, pause: float = 1.0) -> AsyncIterator[None]:
        """While the block runs, visitors come: the requests that every copy of a shop serves, whoever leads.

        Args:
            pause: Seconds between two of them.
        """
        # A scope cancels until it is heard. `Task.cancel()` does so once, and `asyncio.wait_for` of Python 3.11, which
        # asyncmy's time limits are made of, may swallow that.
        visiting = anyio.CancelScope()
        visits = asyncio.create_task(self._receive(pause, visiting))
        try:
            yield
        finally:
            visiting.cancel()
            await asyncio.wait([visits])

    async def letters_sent_again(self) -> int:
        """How many letters left the house that had left it before."""
        async with self._transaction() as do:
            [[letters]] = (await do.execute("SELECT COUNT(*) - COUNT(DISTINCT notification_id) FROM shop_outbox")).rows
        return int(letters)

    async def _receive(self, pause: float, visiting: anyio.CancelScope) -> None:
        dice = random.Random()
        sessions: list[int] = []
        with visiting:
            while True:
                await asyncio.sleep(pause)
                try:
                    sessions = [*sessions[-19:], await self._welcome(dice)]
                    await shop_around(self._transaction, dice, dice.choice(sessions))
                except ShopError as error:
                    logger.debug("a visitor was turned away: {}", error)

    async def _welcome(self, dice: random.Random) -> int:
        return await welcome(self._transaction, dice)

    @asynccontextmanager
    async def _transaction(self, connection: Any = None) -> AsyncIterator[Transaction]:
        if connection is not None:
            yield self._database.joined(connection)
            return
        async with self._opening:
            if not self._whole:
                await open_doors(self._database, self._seed)
                self._whole = True
        async with self._database.transaction() as transaction:
            yield transaction


def many(count: int, thing: str) -> str:
    """A number of things, in words."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
