"""The device: CUDA with NCCL, or CPU with gloo."""
