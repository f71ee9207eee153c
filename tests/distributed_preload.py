"""What a process of the pool needs, imported once by the server that the processes fork from."""

import gc

from megatron_llava.platform.device import set_up_device

set_up_device("cpu")

import megatron_llava.train  # noqa: E402
import megatron_llava.training.run  # noqa: E402, F401

# What is there now stays: collecting garbage after each job need not look through it.
gc.freeze()
