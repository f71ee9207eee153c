"""megatron_llava: a Megatron-core trainer for LLaVA-NeXT and LLaVA-OneVision models."""

__version__ = "0.1.0"
