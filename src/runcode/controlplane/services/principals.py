"""The name by which a box knows its own certificates."""

from __future__ import annotations


def principal_for(workspace_id: int) -> str:
    """The one name that a box accepts in a certificate. From the immutable id: a title can be taken over."""
    return f"workspace-{workspace_id}"
