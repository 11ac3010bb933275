"""A trained run as graphs that other runtimes read, with the numbers that say how well they do."""
