"""Layer-wise probing: what a linear model finds in each layer of a frozen encoder."""
