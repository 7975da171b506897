"""The first day of a shop: its tables are made and filled once, by one of however many processes start together.

A shop counts as whole when its row in ``shop_opening`` is there, and that row is committed together with all the
goods: a process that dies halfway leaves empty tables, and the next one fills them.
"""

from __future__ import annotations

from typing import Final

from loguru import logger

from shop_database import Database, StatementFailed, as_text, insert
from shop_seed import first_day

# UNIQUE with the id at its end is the one spelling of an index that every kind of database takes inside a table.
TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS shop_customer (
        id {auto_id},
        name VARCHAR(80) NOT NULL,
        email VARCHAR(120) NOT NULL,
        owed BIGINT NOT NULL,
        overdue BIGINT NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS shop_product (
        id {auto_id},
        title VARCHAR(80) NOT NULL,
        list_price INTEGER NOT NULL,
        price INTEGER NOT NULL,
        stock INTEGER NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS shop_price_alert (
        id {auto_id},
        customer_id INTEGER NOT NULL,
        product_id INTEGER NOT NULL,
        wanted INTEGER NOT NULL,
        notified_at {moment},
        UNIQUE (notified_at, id),
        FOREIGN KEY (customer_id) REFERENCES shop_customer (id),
        FOREIGN KEY (product_id) REFERENCES shop_product (id)
    )""",
    """CREATE TABLE IF NOT EXISTS shop_session (
        id {auto_id},
        customer_id INTEGER NOT NULL,
        started_at {moment} NOT NULL,
        seen_at {moment} NOT NULL,
        ended_at {moment},
        UNIQUE (ended_at, seen_at, id),
        FOREIGN KEY (customer_id) REFERENCES shop_customer (id)
    )""",
    """CREATE TABLE IF NOT EXISTS shop_cart_item (
        session_id INTEGER NOT NULL,
        product_id INTEGER NOT NULL,
        quantity INTEGER NOT NULL,
        PRIMARY KEY (session_id, product_id),
        FOREIGN KEY (session_id) REFERENCES shop_session (id),
        FOREIGN KEY (product_id) REFERENCES shop_product (id)
    )""",
    """CREATE TABLE IF NOT EXISTS shop_invoice (
        id {auto_id},
        customer_id INTEGER NOT NULL,
        amount INTEGER NOT NULL,
        due_on DATE NOT NULL,
        paid_on DATE,
        bucket VARCHAR(8) NOT NULL,
        reminded_at {moment},
        UNIQUE (customer_id, paid_on, id),
        UNIQUE (paid_on, due_on, id),
        UNIQUE (reminded_at, id),
        FOREIGN KEY (customer_id) REFERENCES shop_customer (id)
    )""",
    """CREATE TABLE IF NOT EXISTS shop_notification (
        id {auto_id},
        customer_id INTEGER NOT NULL,
        kind VARCHAR(20) NOT NULL,
        about INTEGER NOT NULL,
        state VARCHAR(8) NOT NULL,
        attempts INTEGER NOT NULL,
        due_at {moment} NOT NULL,
        sent_at {moment},
        UNIQUE (state, due_at, id),
        FOREIGN KEY (customer_id) REFERENCES shop_customer (id)
    )""",
    # What has left the house. As with any letter box, nothing here keeps a letter from leaving twice.
    """CREATE TABLE IF NOT EXISTS shop_outbox (
        id {auto_id},
        notification_id INTEGER NOT NULL,
        email VARCHAR(120) NOT NULL,
        subject VARCHAR(120) NOT NULL,
        posted_at {moment} NOT NULL,
        UNIQUE (notification_id, id),
        UNIQUE (posted_at, id)
    )""",
    """CREATE TABLE IF NOT EXISTS shop_opening (
        id INTEGER PRIMARY KEY,
        seed BIGINT NOT NULL,
        opened_at {moment} NOT NULL
    )""",
)

ATTEMPTS: Final = 5


async def open_doors(database: Database, seed: int) -> None:
    """Returns when the shop is whole, whoever made it so.

    Raises:
        ShopError: The database is not there, or refuses to hold a shop.
    """
    for attempt in range(1, ATTEMPTS + 1):
        if await _is_whole(database):
            return
        try:
            await _create_and_fill(database, seed)
        except StatementFailed:
            # Another process was at it at the same time, and this one's row came second: it shows at the next look.
            if attempt == ATTEMPTS:
                raise
        else:
            return


async def _is_whole(database: Database) -> bool:
    try:
        async with database.transaction() as do:
            return bool((await do.execute("SELECT id FROM shop_opening")).rows)
    except StatementFailed:
        return False  # there is no such table yet


async def _create_and_fill(database: Database, seed: int) -> None:
    # A transaction of its own, because MySQL commits at every CREATE TABLE.
    async with database.transaction() as do:
        for table in TABLES:
            await do.execute(table.format(auto_id=database.auto_id, moment=database.moment))
    async with database.transaction() as do:
        now = await do.now()
        # First, so that the other processes wait here until this one has filled the shop, or has died of it.
        await do.execute(*insert("shop_opening", {"id": 1, "seed": seed, "opened_at": as_text(now)}))
        rows = 0
        for table, goods in first_day(seed, now):
            sql, _ = insert(table, goods[0])
            await do.execute_many(sql, goods)
            rows += len(goods)
    logger.info("opened a new shop with {:,} rows", rows)
