"""compile(branches="specialise"): a trace for each path that Python takes through a function.

From the trace outwards: `guide` answers what a traced function asks and notes it, `keys` say which
values of two traces are the same, `plan` cuts the paths into programs that run from one guard to
the next, `branched` runs them, `text` prints the guards.
"""

from needle.compiled.branches.branched import Branched as Branched
from needle.compiled.branches.guide import Answers as Answers
