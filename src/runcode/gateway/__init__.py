"""The SSH bastion: authenticates both legs, then relays packets between them.

Imports nothing of the control plane or the runtimes: it asks through `directory`.
"""
