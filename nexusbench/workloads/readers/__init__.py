"""Public trace formats, one file each."""
