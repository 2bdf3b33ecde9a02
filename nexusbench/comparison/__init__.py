"""Runs side by side: views of stored runs, rows with their marks, warnings, the verdict."""
