"""The set-ups of the pages' blocks: one module for each page, each with a table ``SETUPS``."""
