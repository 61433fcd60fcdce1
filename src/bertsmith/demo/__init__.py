"""From nothing to a BERT that reads Python's documentation, on text that is already on the machine.

labels.py       the labels that are in a docstring: its library, its marked names, its parameters
data.py         chosen, split by module, written
baselines.py    what a majority reaches
samples.py      what the models say about held-out text
summary.py      scores side by side, the report, the last words
run.py          the stages, in order
"""

from bertsmith.demo.run import DemoSettings, run_demo
from bertsmith.demo.summary import DemoResult

__all__ = ["DemoResult", "DemoSettings", "run_demo"]
