"""Training on the host's own models."""
