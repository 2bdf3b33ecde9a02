"""Experiments: questions that take more than one run, or measurements from elsewhere, to answer."""
