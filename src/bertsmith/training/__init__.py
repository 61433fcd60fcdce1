"""Anything that has a loss -> weights. One loop for pre-training and for every fine-tuning.

task.py         what the loop asks of a task: read this first
device.py       which device, which precision
launch.py       what torchrun says: how many processes, and which this one is
distributed.py  several processes that train one model: shares, sums, rank 0's word
optim.py        the optimizers by name, their settings, which parameters decay
optimizers.py   those that torch does not have
schedule.py     budgets, and the learning rate as a function of progress
average.py      a moving average of the weights
plan.py         the settings of a run, its stages, its result
loader.py       order of the examples and their batches, as a pure function of (seed, epoch)
checkpoint.py   crash-safe saving, verified loading
step.py         accumulate, check, clip, update
evaluate.py     a task's answers and scores over a whole split
progress.py     metrics.jsonl and what is seen in the terminal
report.py       report.html
environment.py  where a run took place: versions, processor, memory
interrupt.py    Ctrl-C means: finish the step and save
loop.py         step, report, evaluate, checkpoint, stop
"""
