"""Stage-aware training of audio diffusion models.

import stagecli

model = stagecli.load("runs/quickstart")
model.generate("a loud bell", seconds=2).save("bell.wav")
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported when they are used: `import stagecli` loads no torch. Their types are in __init__.pyi.
_LATER = {
    "Audio": "stagecli.generate.model",
    "Model": "stagecli.generate.model",
    "StageError": "stagecli.errors",
    "load": "stagecli.generate.model",
}
__all__ = ["Audio", "Model", "StageError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(_LATER[name]))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
