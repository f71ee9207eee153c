"""Log lines, JSONL, TensorBoard and the progress bar."""
