"""Models of NumPyro as programs, and programs as models of NumPyro."""
