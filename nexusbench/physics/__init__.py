"""What happens on a GPU: the truth of every simulated run."""
