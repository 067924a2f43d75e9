"""Prompts: how the host cuts, encodes and carries them."""
