"""Every fenced block of README.md and of the pages in ``docs/`` is run, or compared with what it speaks of.

A block has a name: the heading above it as a link spells it, with a number from the second block on
(``leadership#what-leaves-the-block``, ``jobs#jobs-2``). What a block needs beside its text is a `Setup` in
``tests/docs/setups/<page>.py``, in the table ``SETUPS``, under that name. A page holds no set-up of its own. A block
that nothing says how to run fails, and so does a set-up without a block.

``python``
    Without a set-up: a complete program. It runs in an empty folder and must end by itself, with status 0, in 30 s.
    With ``Setup(around=…)``: the function makes the names that the block takes as given, yields, and asserts on what
    the block did. Around a generator function's ``yield`` the block is a program. Around that of an async one it runs
    inside the event loop: ``await`` and ``async with`` may stand at its top level.
    With ``Setup(served=…)``: an application. `test_served.py` starts it as processes, with each command of the ``sh``
    block below it.
``console``
    Each line with ``$ `` is a command, and is run. The lines below it are compared with what it prints.
``sh``
    Commands for the reader, which change the machine or go on for ever. Each must exist: a target of the Makefile, a
    file of the project with such options, a subcommand of ``aiolease``, an extra.
``text``
    What the block above it prints. Every line must occur, in this order; times, durations, holders and line numbers may
    differ, and ``…`` stands for anything. ``Setup(picture=True)``: a drawing.
``sql``
    With ``Setup(needs=…)``: its statements run on that database, where aiolease's tables have been made.
``env``
    ``AIOLEASE_…=value`` lines; `LeaseSettings` must know and accept them.
``toml``, ``json``, ``yaml``
    It must parse.
"""
