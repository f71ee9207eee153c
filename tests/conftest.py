"""Make the helpers of this folder (`tiny_checkpoints` and the like) importable from every test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
