"""A trained run in use: audio of any kind and length in, typed answers out."""
