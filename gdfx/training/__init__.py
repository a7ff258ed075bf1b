"""Training: the compiled step, the loop around it, mini-batches, stopping rules."""
