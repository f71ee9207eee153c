"""Declarative weight maps between Hugging Face and Megatron checkpoints."""
