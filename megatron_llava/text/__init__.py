"""Tokenizers, conversation templates and label masks."""
