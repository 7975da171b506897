"""The statements of the lease and of the ledger, written once, and the mapping between rows and records.

A `Dialect` says in its database's own words what differs inside a statement: the clock, a moment some microseconds
later, a comparison that takes NULL for NULL, an INSERT that does nothing if the row is there, index hints, quotes, and
what the driver takes for a moment. Everything else stands here:

* `lease`: the lease and the fence;
* `ledger`: what the leader reads, and what people ask;
* `recording`: what the leader writes, as the steps of one transaction, each with the number of rows it must change;
* `rows`: the columns, and how a row becomes a record;
* `schema`: the version of the tables, and the way from an older one.

How they are sent is each database's own. MySQL's go out in packets, with a check between two statements, and many
leases share one. SQLite's are one function in the store's thread.

MySQL has a shape of its own for these statements, in `aiolease.stores.mysql.statements`:

* a claim, which writes lease and fence in one UPDATE of both tables, so that it needs no transaction of its own in a
  packet of a hundred; and what makes the row of a fence for it, which elsewhere a claim does by itself;
* a reading of a lease that asks for the leader's lock as well (``GET_LOCK``);
* the enrolment of jobs: an upsert that compares the new values needs ``VALUES()`` or a row alias, and neither is taken
  by MariaDB and MySQL without a warning;
* pruning: a DELETE with a LIMIT is unsafe in a binary log of statements, so the old rows are read first.

PostgreSQL can send all of them as they stand here.
"""
