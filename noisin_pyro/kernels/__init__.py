"""Fast tensor functions, independent of cells and noise."""
