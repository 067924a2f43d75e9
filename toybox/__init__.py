"""Toybox: a small drawn world, the latent diffusion model trained on it, and the judge that measures results."""
