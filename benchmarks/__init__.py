"""The pictures and figures that the README shows."""
