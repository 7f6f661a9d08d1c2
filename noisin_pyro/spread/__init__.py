"""The spread γ of a noise: fixed, learned by empirical Bayes, or with a prior."""
