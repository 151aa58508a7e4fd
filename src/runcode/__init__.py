"""RunCode: secure, low-friction SSH access for coding agents to remote workspaces.

One distribution, two halves that share only `runcode.core`: the client
(`client`, `cli`, `agents`) and the service (`controlplane`, `gateway`,
`runtimes`, wired by `server`).
"""

__version__ = "0.1.0"
