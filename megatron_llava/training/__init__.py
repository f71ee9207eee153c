"""Loss, optimizer groups, the loop and checkpoints."""
