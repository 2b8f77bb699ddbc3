"""Which gradient is biased, and what is said of it."""
