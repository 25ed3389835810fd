"""L2-regularised logistic regression: problems, their optima, methods to solve them."""
