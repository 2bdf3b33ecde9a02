"""Does the suite notice a changed line? Mutants of the package, run against the fast tests."""
