"""Measuring: quality of samples, cost of making them, and what may be concluded from the two."""
