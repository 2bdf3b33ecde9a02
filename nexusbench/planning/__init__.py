"""One decision: what a policy sees, what it asks for, and the journal that can undo it."""
