"""``python -m nexusbench``."""

from nexusbench.cli.main import entry

if __name__ == "__main__":
    entry()
