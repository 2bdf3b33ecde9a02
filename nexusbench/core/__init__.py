"""The vocabulary of the project; stdlib and msgspec only."""
