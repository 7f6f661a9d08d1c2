"""Fast tensor functions that know nothing of cells."""
