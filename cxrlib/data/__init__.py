"""Layer 1: from a folder of films to batches of tensors."""
