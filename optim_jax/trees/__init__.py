"""Names of leaves, rule tables over names, and leaves seen as stacks of matrices."""
