"""Workspaces on this machine: a real sshd inside bubblewrap, one keeper process each.

    runtime      the port: create, start, stop, destroy, inspect
    layout       names of every path, and how private files are written
    storage      a workspace's home: made whole, removed without following a link
    identity     which host uid a box runs as
    machine      what this machine has, and what it lacks
    etc_tree     the box's /etc, by allowlist
    box_files    the box's read-only folder: sshd_config, keys, init, sudo
    plan         what a keeper is told
    limits       what a box may take: cgroups, found, made and removed
    destinations what a box may reach: the filter, as a pure function
    netlink      addresses and routes
    keepers      finding, starting and ending keepers, seen from the server
    keeper       the process that owns one box's life
    box_network  a box's own network namespace, guarded before its first program runs
    box_helper   the keeper's care for the program that carries the packets
    keeper_log   what the box may say to the host: bounded and printable
    bubblewrap   the command line of the box
    staging      as root: a private root that holds what the box needs, then a lesser uid
    box_init     runs inside the box: one sshd per connection

`keeper`, `keeper_log`, `bubblewrap`, `staging`, `plan`, `limits`, `destinations`, `netlink`,
`box_network`, `box_helper` and `box_init` run in processes
of their own and keep to the standard library.
"""
