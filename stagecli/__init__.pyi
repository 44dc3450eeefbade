from stagecli.errors import StageError as StageError
from stagecli.generate.model import Audio as Audio
from stagecli.generate.model import Model as Model
from stagecli.generate.model import load as load

__version__: str
