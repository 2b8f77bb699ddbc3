"""What depends on what: terms of a payoff, elements of a plate, what is alike, what is known."""
