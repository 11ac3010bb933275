"""Fuse the layers of several speech foundation models and train small heads on the result."""

__version__ = "0.1.0"
