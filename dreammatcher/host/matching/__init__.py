"""DreamMatcher in ComfyUI: what its nodes call."""
