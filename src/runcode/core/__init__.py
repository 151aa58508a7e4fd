"""The vocabulary that both halves share: names, bundle, host keys, ssh config text, errors, wire shapes.

Never: I/O, a clock, the environment, or anything outside the standard library.
Everything that comes from a server, a box or a repository is turned into one of
these types before any other code may use it. Imports here stand on the client's
path at every call, so they are kept to modules that start in under a millisecond
(`dataclasses` and `typing` are not among them: see `core.values`).
"""
