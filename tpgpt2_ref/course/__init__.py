"""What teaches: the claims, exercises and the sabotage lab. A chapter takes its tools here:

    from tpgpt2_ref.course import check, claim, diagram, exercise, explorer, picture, predict, sabotage
"""
from importlib import import_module

_ROOMS = {"diagram": "..pictures", "picture": "..pictures", "claim": ".claims", "explorer": "..explorers",
          "predict": "..explorers", "check": ".exercises", "exercise": ".exercises", "score": ".exercises"}


def __getattr__(name: str):
    """Each tool from its own room, imported when it is asked for: `diagram` needs none of what `check` needs."""
    if name == "sabotage":
        return import_module(".sabotage", __name__)
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name], __name__), name)
