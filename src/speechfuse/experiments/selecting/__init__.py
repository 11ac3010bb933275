"""Which encoder, which layer, which pair of encoders for a task: closed-form probes, in minutes."""
