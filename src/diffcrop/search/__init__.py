"""Searches for boxes, made of the public functions: `fit_boxes` climbs any differentiable objective of the crop."""

from .fit import fit_boxes
from .results import FitStep, FittedBoxes, Trace
from .schedule import SCHEDULES, Stage

__all__ = ["SCHEDULES", "FitStep", "FittedBoxes", "Stage", "Trace", "fit_boxes"]
