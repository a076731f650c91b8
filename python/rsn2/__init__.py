"""Many tasks in one network, each on its own disjoint subset of the weights: the RSN2 procedure for PyTorch.

convert -> (warm_up) -> allocate -> use_task, use_tasks / parameters / fit, fit_together -> evaluate, predict, report,
save, load, extract
"""

from rsn2 import nn
from rsn2.allocate import AllocationError, allocate
from rsn2.checkpoint import load, read_metadata, save
from rsn2.convert import convert
from rsn2.evaluation import evaluate, predict, predict_together
from rsn2.extract import extract
from rsn2.nn.layer import TaskError
from rsn2.ownership import named_parameters, parameters, shared_parameters
from rsn2.report import Report, report
from rsn2.sealed import CheckpointError
from rsn2.tasks import finalize, remove, tasks, use_task, use_tasks
from rsn2.training import History, TrainingError, fit, fit_together
from rsn2.warm_up import WarmStart, warm_up

__all__ = [
    "AllocationError",
    "CheckpointError",
    "History",
    "Report",
    "TaskError",
    "TrainingError",
    "WarmStart",
    "allocate",
    "convert",
    "evaluate",
    "extract",
    "finalize",
    "fit",
    "fit_together",
    "load",
    "named_parameters",
    "nn",
    "parameters",
    "predict",
    "predict_together",
    "read_metadata",
    "remove",
    "report",
    "save",
    "shared_parameters",
    "tasks",
    "use_task",
    "use_tasks",
    "warm_up",
]
