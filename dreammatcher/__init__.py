"""DreamMatcher and its relatives. Everything outside ``host`` is pure torch and runs without ComfyUI."""
