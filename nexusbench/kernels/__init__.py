"""Kernels of the decoder on the CPU: native ones where they can be built, torch everywhere."""
