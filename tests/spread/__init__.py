"""The room ``noisin_pyro/spread``.

No test of this folder is statistical: every draw has a fixed seed, or a bound a hundred times its
standard error away.
"""
