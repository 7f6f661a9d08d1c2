"""The paper's tables and figures: recipes, what runs them, and what renders their records."""
