"""Choosing records before they are tokenised."""
