"""Whether what seems to jump does: slices of a program, evaluated by numbers."""
