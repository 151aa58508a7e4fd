"""Workspaces on this machine: a real sshd inside bubblewrap, one keeper process each."""
