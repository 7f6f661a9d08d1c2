"""The paper's tables and figures: their recipes, the training of their models, and rendering."""
