"""What is wrong with a corpus before anything is trained on it: leaks between splits, bad audio."""
