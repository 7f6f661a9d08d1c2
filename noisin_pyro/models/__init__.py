"""Generative processes as Pyro models."""
