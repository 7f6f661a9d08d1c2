"""Corpora, batching, held-out evaluation and generation."""
