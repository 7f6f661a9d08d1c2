"""``noisin tune``: a search over γ, the kind of noise and dropout, on validation perplexity."""
