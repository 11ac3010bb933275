"""What the two systems cost, beside plain references, in one run."""
