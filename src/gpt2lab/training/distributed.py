"""Until main has moved: the names of processes and sharding under their older roof."""

from gpt2lab.training.processes import *  # noqa: F403
from gpt2lab.training.sharding import *  # noqa: F403
