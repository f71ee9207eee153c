"""The visual packing operator and packed attention."""
