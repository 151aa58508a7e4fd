"""The operator's CLI, and the only composition root: wires control plane, gateway and runtimes."""
