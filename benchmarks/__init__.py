"""What aiolease costs, and how fast it hands over, measured on private servers: ``python -m benchmarks``.

Every topic is a module with one ``measure`` and gives one table. Whatever is compared is measured side by side in one
run, by turns, and told as a ratio where that is possible: absolute times are those of this machine. Nothing here fails
because a machine is slow; an aim is shown as met or missed.
"""
