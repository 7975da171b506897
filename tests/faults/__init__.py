"""Real faults: processes that want one lease on a real server, a seeded plan of what happens to them, and a checker.

``python -m tests.faults --server mariadb --seconds 600 --seed 7`` runs one; see `__main__`.
"""
