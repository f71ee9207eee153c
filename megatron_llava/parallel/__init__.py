"""Process groups and sharded checkpoints."""
