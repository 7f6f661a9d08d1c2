"""Transitions h_t = f(x_t, z_{t-1}; W): one file a cell."""
