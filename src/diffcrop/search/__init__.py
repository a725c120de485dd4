"""Searches for boxes, made of the public functions.

`locate` finds where a template comes from, `fit_boxes` climbs any differentiable objective of the crop.
"""

from .fit import fit_boxes
from .location import LocateTrace, Location, locate
from .results import FitStep, FittedBoxes, Trace
from .schedule import SCHEDULES, Stage

__all__ = ["SCHEDULES", "FitStep", "FittedBoxes", "LocateTrace", "Location", "Stage", "Trace", "fit_boxes", "locate"]
