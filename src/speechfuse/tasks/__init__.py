"""What is asked of a corpus: one file per task, each a subclass of `contracts.Task`."""
