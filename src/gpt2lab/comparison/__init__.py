"""Comparisons: the same training for several models, and what their differences are worth."""
