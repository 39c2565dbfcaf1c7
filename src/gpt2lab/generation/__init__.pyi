from .engine import Engine as Engine
from .engine import Token as Token
from .generate import generate as generate
from .generate import sample as sample
from .generate import stream as stream
from .sampling import Sampling as Sampling
from .sampling import top_k_logits as top_k_logits
