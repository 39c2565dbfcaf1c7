from .evaluate import Evaluation as Evaluation
from .evaluate import estimate_loss as estimate_loss
from .evaluate import evaluate as evaluate
