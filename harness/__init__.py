"""Boots a real ComfyUI in process, for tests, demo, benchmarks and Toybox training. Not part of the shipped pack."""
