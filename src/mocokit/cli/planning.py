"""`plan`."""


def plan_command(arguments: list[str]) -> int:
    """Compute what a run needs."""
    raise NotImplementedError
