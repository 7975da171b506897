"""The statements of the lease and of the ledger, written once, and the mapping between rows and records.

A `Dialect` says in its database's own words what differs inside a statement: the clock, a moment some microseconds
later, a comparison that takes NULL for NULL, an INSERT that does nothing if the row is there, index hints, quotes, and
what the tables keep of a moment. Everything else stands here:

* `lease`: the lease and the fence;
* `ledger`: what the leader reads, and the deleting of old runs; `overview`: how all jobs stand, at a glance;
* `requests`: what people ask; `merging`: the newest runs of all jobs;
* `recording`: what the leader writes, as the steps of one transaction, each with the number of rows it must change;
* `ledger_store`, `people`: the ledger's methods, what they ask and what they make of the answers;
* `sending`: how a database is sent them, its own part;
* `rows`: the columns, and how a row becomes a record;
* `schema`: the version of the tables, and the way from an older one.

How statements are sent is each database's own. MySQL's go out in packets, with a check between two statements, and many
leases share one. SQLite's are one function in the thread of the file.

PostgreSQL's are one statement each, or one message of several whose checks are in the statements.

MySQL has a shape of its own for five statements. SQLite sends all of them as they stand here, and PostgreSQL can.

* A claim writes lease and fence in one UPDATE of both tables (`mysql.lease`). Two statements would need a transaction,
  or a check between them, in a packet of a hundred claims. So the row of the fence has to be there: what makes the row
  of a lease makes that, too. Elsewhere a claim does by itself.
* A renewal's answer carries the database's clock, and whether to resign (``LAST_INSERT_ID``, `mysql.lease`).
* A leader's reading of its lease asks for the lock in which candidates wait (``GET_LOCK``, `mysql.lease`). It reads the
  row after a claim, at each third renewal, and where its session may be without the lock.
* Telling the database of jobs (`mysql.enrolling`): an upsert that compares the new values with the old ones needs
  ``VALUES()`` or a row alias, and neither is taken by MariaDB and MySQL without a warning.
* Deleting old runs (`mysql.pruning`): a DELETE with a LIMIT is unsafe in a binary log of statements, so the rows are
  read first.
"""
