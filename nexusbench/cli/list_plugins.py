"""stub"""


def list_plugins() -> None:
    """stub"""
