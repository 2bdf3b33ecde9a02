"""Pages, pictures and timelines made of stored runs and profiles."""
