"""Example data sets: out of Python packages, of the user, or downloaded."""
