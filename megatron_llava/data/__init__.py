"""Records, the indexed store, packing plans, batches and the loader."""
