"""Training: the loop, checkpoints, metrics, reports, and ready-made tasks."""

from needle.train.checkpoint import (
    checkpoint_files as checkpoint_files,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
    tag_checkpoint as tag_checkpoint,
)
from needle.train.evaluation import (
    Predictions as Predictions,
    evaluate as evaluate,
    predict as predict,
)
from needle.train.meters import Meter as Meter
from needle.train.metrics import (
    MetricsWriter as MetricsWriter,
    keep_metrics as keep_metrics,
    read_metrics as read_metrics,
)
from needle.train.run import Run as Run, evaluate_run as evaluate_run
from needle.train.steps import (
    Compilation as Compilation,
    EvaluationStep as EvaluationStep,
    TrainingStep as TrainingStep,
)
from needle.train.tasks import (
    Recipe as Recipe,
    Task as Task,
    TaskOptions as TaskOptions,
    load_task as load_task,
)
from needle.train.trainer import (
    Callback as Callback,
    Trainer as Trainer,
    TrainingResult as TrainingResult,
)
