"""What the library does, in two minutes: ``python -m ppl.demo``."""
