"""stub"""


def explain() -> None:
    """stub"""
