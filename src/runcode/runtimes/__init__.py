"""What runs workspaces. `base` is the port; every other package here is one implementation of it.

Runtimes are found by the entry-point group `runcode.runtimes`; none imports
another, the control plane or the gateway.
"""
