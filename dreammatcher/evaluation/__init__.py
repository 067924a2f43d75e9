"""Measuring subject-driven generation as its papers do: protocols, metrics, a runner that resumes, and reports."""
