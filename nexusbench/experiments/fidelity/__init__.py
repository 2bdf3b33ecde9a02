"""How far the simulated GPU is from measurements: by kernel, and over whole recorded runs."""
