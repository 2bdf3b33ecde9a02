"""Scheduling policies, one file each; see docs/adding-a-scheduler.md."""
