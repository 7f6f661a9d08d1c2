"""The room ``noisin_pyro/noise``.

False alarms: the statistical tests of this folder make fewer than 300 comparisons, each at a
level of at most 1e-7, so all of them together fail for no reason less than 3 times in 100,000
draws of their seeds. Seeds are fixed, so a failure repeats.
"""
