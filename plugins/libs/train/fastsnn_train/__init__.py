"""Training and evaluation: language models on real text, networks over time on labelled samples."""

from fastsnn_train import moved as moved
from fastsnn_train.config import DataConfig, TrainConfig
from fastsnn_train.data.documents import DataError
from fastsnn_train.data.packing import Data, Packed, load_data
from fastsnn_train.data.prepare import fit_data
from fastsnn_train.evaluation.evaluate import evaluate
from fastsnn_train.evaluation.figures import standard_error
from fastsnn_train.evaluation.perplexity import EvaluationError, evaluate_text
from fastsnn_train.extend import extend_context
from fastsnn_train.loop.trainer import Trainer, TrainingError
from fastsnn_train.samples.decisions import decisions, early_exit
from fastsnn_train.samples.figures import sample_figures
from fastsnn_train.samples.prepare import SampleData, sample_data
from fastsnn_train.samples.sample_set import SampleSet

__version__ = "0.1.0"
__all__ = [
    "Data",
    "DataConfig",
    "DataError",
    "EvaluationError",
    "Packed",
    "SampleData",
    "SampleSet",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "decisions",
    "early_exit",
    "evaluate",
    "evaluate_text",
    "extend_context",
    "fit_data",
    "load_data",
    "sample_data",
    "sample_figures",
    "standard_error",
]
