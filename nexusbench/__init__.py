"""nexusbench: how should prefill and decode share a GPU, and what does each way of scheduling cost?"""

__version__ = "0.1.0"
