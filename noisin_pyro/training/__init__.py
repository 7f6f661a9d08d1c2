"""Training a language model: configuration, loop, checkpoints, run folder."""
