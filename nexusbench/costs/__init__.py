"""Cost models: what a policy believes a batch will take. Never what the device does."""
