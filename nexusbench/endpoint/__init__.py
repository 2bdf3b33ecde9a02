"""Replaying a trace against an OpenAI-compatible server: prompts, connections, two threads."""
