"""From a program to values: simulate, log density, other estimators."""
