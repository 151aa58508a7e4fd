"""The control plane: API, rules, store, reconciler."""
