"""Low-rank adapters (LoRA) beside core's parallel linears."""
