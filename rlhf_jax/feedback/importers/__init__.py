"""Rows of published files of human feedback, and of this project's own, as records."""
