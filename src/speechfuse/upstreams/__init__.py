"""Frozen foundation models: one file per family, each a subclass of `contracts.Upstream`."""
