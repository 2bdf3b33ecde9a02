"""Sweeps over SMs, batch mixes and neighbours of any device, and what follows from them."""
