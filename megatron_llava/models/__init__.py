"""Layer specs, vision tower, projector and LlavaModel."""
