"""What a program is: choices, their primitives, and how it is run with a rule at each."""
