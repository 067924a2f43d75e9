"""Scores of pictures in the graph."""
