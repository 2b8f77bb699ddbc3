"""Sums over finite supports: grids, chains, marginals."""
