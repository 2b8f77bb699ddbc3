"""How each choice of a scope is treated."""
