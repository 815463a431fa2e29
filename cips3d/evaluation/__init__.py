"""Measures of what a generator has learned."""
