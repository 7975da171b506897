"""What people are shown of a lease and its jobs: by the command line, and by the page. Both only print it.

* `lease`: the lease that is looked at, and the store that has it;
* `look`: one look at it, what is wrong, and what `why` reckons from;
* `telling`: rows as text, and the same for programs.
"""
