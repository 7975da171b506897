"""What the stores on servers share: connections over a network, and no word of SQL.

* `session`: one connection, made when it is needed, discarded at trouble, one exchange at a time;
* `connecting`, `resolve`, `tls`: how a connection is made;
* `polls`: the readings of one process's candidates, made together;
* `queued`: what its leases write, in a queue;
* `unsupported`: servers that name themselves as a database which is refused;
* `lending`: where the connections of transactions come from.
"""
