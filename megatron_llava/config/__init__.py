"""Keyword-only dataclasses: every setting, documented; they are the command line."""
