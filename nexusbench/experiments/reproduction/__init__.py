"""A paper's evaluation, run again: experiments and claims from specs, a verdict for each claim."""
