"""Frozen layers on disk, computed once."""
