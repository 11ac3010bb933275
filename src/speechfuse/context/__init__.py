"""What stands between two fusions: a transformer that reads frames and a prompt."""
