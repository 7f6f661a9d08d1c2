"""Noisy recurrent modules, drop-ins for torch's, and emissions."""
