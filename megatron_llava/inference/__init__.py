"""Greedy generation and scorers."""
