"""stub"""


def rerun() -> None:
    """stub"""
