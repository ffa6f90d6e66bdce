"""transformers' Trainer as every method uses it: with a readout, whole checkpoints, and an end when it is asked to."""
