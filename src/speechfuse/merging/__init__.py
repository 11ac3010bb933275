"""Model fusion: one file per method, each a subclass of `contracts.Merge`."""
