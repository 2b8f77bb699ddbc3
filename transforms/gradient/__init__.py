"""The code that runs: surrogates, replays, draws, and what is not finite in them."""
