"""Unbiased noise: densities, the kinds of noise, named families."""
