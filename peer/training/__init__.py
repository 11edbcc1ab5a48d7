"""Local training: the flat model, optimizer steps, data order, random state, checkpoints."""
