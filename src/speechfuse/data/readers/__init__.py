"""Corpora as their owners ship them: one file each, listed in `table.py`."""
