"""What of a run's encoders it can do without: blocks at the top, and encoders that add nothing."""
