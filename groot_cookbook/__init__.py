"""Learn, run and ship the GR00T-Dreams data engine.

The surface below is what a program imports, and stays; everything else lives in the module of its chapter and may move with it.
Nothing heavy is touched until it is used: a name brings in its own module, and what that needs is an extra of the installation.
"""
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:           # the same names for type checkers and editors; tests/test_surface.py holds the two lists together
    from .core import CookbookError as CookbookError
    from .dreaming import Dream as Dream, dream as dream, load_dreamer as load_dreamer
    from .episodes import Dataset as Dataset, Episode as Episode, Modality as Modality, convert as convert, validate as validate, write_dataset as write_dataset
    from .evaluation import Score as Score, evaluate as evaluate
    from .export import export_policy as export_policy
    from .filtering import Verdict as Verdict, judge as judge, load_critic as load_critic
    from .finetuning import Recipe as Recipe, finetune as finetune
    from .idm import InverseDynamics as InverseDynamics, label as label
    from .policy import GrootPolicy as GrootPolicy
    from .provenance import Credentials as Credentials, read_credentials as read_credentials, sign as sign
    from .workspace import Workspace as Workspace, demonstrate as demonstrate

__version__ = "0.1.0"

_HOME = {"CookbookError": "core", "Episode": "episodes", "Dataset": "episodes", "Modality": "episodes", "validate": "episodes", "write_dataset": "episodes", "convert": "episodes",
         "Workspace": "workspace", "demonstrate": "workspace", "Dream": "dreaming", "load_dreamer": "dreaming", "dream": "dreaming", "sign": "provenance", "Credentials": "provenance", "read_credentials": "provenance",
         "InverseDynamics": "idm", "label": "idm", "Verdict": "filtering", "load_critic": "filtering", "judge": "filtering", "GrootPolicy": "policy",
         "Recipe": "finetuning", "finetune": "finetuning", "Score": "evaluation", "evaluate": "evaluation", "export_policy": "export"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME: raise AttributeError(f"module 'groot_cookbook' has no attribute {name!r}")
    try: value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as e:
        from .core import missing
        raise missing(e) from e
    globals()[name] = value
    return value


def __dir__() -> list[str]: return sorted([*globals(), *_HOME])
