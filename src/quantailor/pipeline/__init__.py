"""The whole way, as lists of steps in one job: `study` measures everything, `make` goes on to a file and its verdict.

parts   what both share: the parts that measure, and the levels of a study
study   convert, importance matrix and covariances, weight errors, probes, sweep, as far as a level goes
make    convert, importance matrix and covariances, weight errors, probes, plan, build, verify, in one directory
ladder  the same with several sizes, and the card of all of them
"""

from quantailor.pipeline.ladder import NAME, LadderResult, LadderStep
from quantailor.pipeline.make import MakeResult, MakeStep
from quantailor.pipeline.parts import LEVEL_SETTINGS, LEVELS, Level
from quantailor.pipeline.study import StudyResult, StudyStep
