"""stub"""


def compare() -> None:
    """stub"""
