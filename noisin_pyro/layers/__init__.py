"""One layer over a whole sequence, by the fastest exact algorithm."""
