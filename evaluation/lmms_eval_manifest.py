"""Tells lmms-eval of the model ``rebus``: what its entry point calls, so it imports nothing that takes long.

lmms-eval finds it in the group ``lmms_eval.models`` of installed packages, whenever both are installed.

Source: https://github.com/EvolvingLMMs-Lab/lmms-eval (0.7.3), ``lmms_eval/models/registry_v2.py``.
"""

from importlib import import_module
from typing import Any


def manifest() -> Any:
    """Returns the manifest of the model, of the class that lmms-eval has for it."""
    registry = import_module("lmms_eval.models.registry_v2")
    here = "rebus.evaluation.lmms_eval_model"  # lmms-eval takes the names of classes, to import the one it needs
    return registry.ModelManifest(
        model_id="rebus", chat_class_path=f"{here}.RebusChat", simple_class_path=f"{here}.RebusSimple"
    )
