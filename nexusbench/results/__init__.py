"""Run folders: the manifest, atomic part-files of events, and a strict reader of both."""
