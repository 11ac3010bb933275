"""Which layers of the prompted transformer each prompt chooses, and what makes it choose them."""
