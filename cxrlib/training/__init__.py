"""Floor 2: the network, its five stages, the one training loop, its checkpoints."""
