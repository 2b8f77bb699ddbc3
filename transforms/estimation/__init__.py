"""What an estimator sees: one choice, its elements, its draws and its density."""
