"""Grids of variants: their cells, one run each, and the tables that compare them."""
