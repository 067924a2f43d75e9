"""The pictures and figures that the README and docs/measured.md show."""
