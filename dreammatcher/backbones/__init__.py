"""Families of models and their noise processes: where a network keeps what the methods read and change."""
