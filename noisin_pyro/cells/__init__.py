"""Recurrent cells, the transitions h_t = f(x_t, z_{t-1}; W): one file for each."""
