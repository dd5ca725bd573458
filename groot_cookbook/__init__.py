"""Learn, run and ship the GR00T-Dreams data engine.

The surface below is what a program imports; everything else lives in the module of its chapter. Nothing heavy is touched until it is used.
"""
from importlib import import_module

__version__ = "0.1.0"

_HOME = {"CookbookError": "core", "Episode": "episodes", "Dataset": "episodes", "Modality": "episodes", "write_dataset": "episodes", "validate": "validation",
         "Workspace": "workspace", "demonstrate": "workspace", "Dream": "dreaming", "load_dreamer": "dreaming", "dream": "dreaming",
         "InverseDynamics": "idm", "label": "idm", "Verdict": "filtering", "load_critic": "filtering", "judge": "filtering",
         "GrootPolicy": "policy", "finetune": "finetuning", "evaluate": "evaluation", "export_policy": "export"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME: raise AttributeError(f"module 'groot_cookbook' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]: return sorted([*globals(), *_HOME])
