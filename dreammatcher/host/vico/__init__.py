"""ViCo on the host's own models."""
