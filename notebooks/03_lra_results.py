# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Results on the Long Range Arena
#
# What you will see here: the runs of a folder as tables and plots. Test accuracies beside the
# paper's, learning curves, accuracy against the number of landmarks, speed and memory. It is what
# `report.py` writes, from the same code, with each run's data at hand for more.
#
# The runs are those of `results/`. For your own: `python notebooks/run.py 03_lra_results
# --runs=runs`, or change `RUNS` below.

# %%
# %matplotlib inline
import os
import sys
from pathlib import Path

sys.path.insert(0, "..")  # the repository's root, for report.py

from IPython.display import Markdown, display

import report
from experiment import plots
from experiment.read_runs import read_runs
from experiment.tracks import TRACKS

RUNS = Path(os.environ.get("NOTEBOOK_RUNS", "../results"))
found = read_runs([RUNS])
finished = [run for group in found.groups for run in group.runs]
print(f"{len(finished)} finished runs, {len(found.unfinished)} unfinished")
for path, why in found.skipped:
    print(f"skipped: {os.path.relpath(path, RUNS)}: {why}")


def show(table, nothing):
    """A table, or a sentence where it has no rows."""
    header, rows = table
    display(Markdown(report.markdown(header, rows) if rows else nothing))


def show_plot(figure, nothing):
    """A plot, or a sentence where there is none."""
    display(figure or Markdown(nothing))


# %% [markdown]
# ## The paper's table

# %%
display(Markdown(report.LRA_TEXT))
show(report.lra_table(found.groups), "")

# %% [markdown]
# ## Runs that don't compare with LRA
#
# They differ from it in data or recipe; the last column says how. Models that were tuned, that are
# of another size or that were pretrained have a table each.

# %%
for track, (title, text) in TRACKS.items():
    records, columns = report.apart_of(track, found.groups)
    if records:
        display(Markdown(f"**{title}.** {text}"))
        show(report.table(records, columns), "")

# %% [markdown]
# ## Learning curves
#
# Accuracy on held-out validation data as training goes on, a line for each run, runs of one group
# in one colour; dashed where a run is unfinished, dotted what the labels' shares alone give. What
# all runs of a panel have in common is not in its legend.

# %%
show_plot(
    plots.plot_curves(found.groups, found.unfinished),
    "There are no reports on validation data in the folder yet.",
)

# %% [markdown]
# The training loss of the same runs tells earlier than accuracy whether anything is being learnt:
# a flat start is the loss of a model that knows only how often each label occurs.

# %%
show_plot(
    plots.plot_curves(found.groups, found.unfinished, "train", "loss"),
    "There are no reports on training data in the folder yet.",
)

# %% [markdown]
# ## Accuracy against the number of landmarks
#
# Runs that differ in the number of landmarks alone, with softmax attention of the same settings as
# a dashed line where there is such a run.

# %%
nothing = (
    "There are no two finished runs in the folder that differ in the number of landmarks alone. "
    "`python sweep.py --config=configs/lra_listops.py:quick --config.model.num_landmarks=16,32,64`"
    " makes some."
)
show_plot(plots.plot_landmarks(found.groups), nothing)
header, rows = report.table(report.landmarks_records(found.groups), report.LANDMARKS)
if rows:
    show((header, rows), "")

# %% [markdown]
# ## Speed and memory
#
# Training examples per second and peak memory, medians over runs on the same hardware, a row of
# panels for each hardware and length of the inputs.

# %%
show_plot(plots.plot_speed(found.groups), "No run in the folder has recorded its speed.")
show(report.table(report.speed_records(found.groups), report.SPEED), "")

# %% [markdown]
# ## Unfinished runs

# %%
header, rows = report.table(report.unfinished_records(found), report.UNFINISHED)
rows = [[os.path.relpath(run.folder, RUNS), *row[1:]]
        for run, row in zip(found.unfinished, rows, strict=True)]  # fmt: skip
show((header, rows), "There are none.")
