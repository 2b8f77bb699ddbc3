"""Programs evaluated by NumPy, without compilation."""
