"""A trained run as a page and an HTTP service (extra `demo`)."""
