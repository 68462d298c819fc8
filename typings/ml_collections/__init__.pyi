"""ConfigDict as this project uses it: its keys follow from dataclasses at run time, and have no static types."""

from typing import Any

from . import config_flags as config_flags
from .config_dict import ConfigDict as ConfigDict

def __getattr__(name: str) -> Any: ...
