"""A seeded simulation of the real election: many processes, one database, virtual time, and everything goes wrong.

`world` steps one event loop per `process`, each with a clock of its own; `network` is the database and the ways to it;
`faults` draws from a seed what happens; `checker` proves the invariants on a journal, of this or of real processes;
`mutations` breaks the rules one by one, to show that the checker bites. `python -m tests.simulation` runs it.
"""
