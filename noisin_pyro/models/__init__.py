"""Pyro models of sequences whose hidden states come from a noisy RNN."""
