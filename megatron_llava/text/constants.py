"""Numbers and strings that the text, data and model rooms agree on."""

IGNORE_INDEX = -100
"""Label of a position that is not trained on (the ignore_index of torch's cross entropy)."""

IMAGE_TOKEN_INDEX = -200
"""Stands for one whole image in token ids; outside every vocabulary, so it cannot be a word."""

IMAGE_PLACEHOLDER = "<image>"
"""Marks the place of one image in a conversation's text."""

VIDEO_PLACEHOLDER = "<video>"
"""The same of one video, in records; LLaVA's use IMAGE_PLACEHOLDER for it."""
