"""Several devices: eight virtual ones, in processes of their own."""

import os
import subprocess
import sys

import pytest

from configs import base
from experiment.mesh import make_mesh, sequence_axis
from tests.conftest import ROOT

CHECKS = {
    ("eight_devices", "attention"): (
        "sharded_attention_is_attention",
        "arrays_on_a_mesh_of_explicit_axes_are_attended_to",
        "heads_of_keys_on_explicit_axes_may_be_shared",
        "models_take_arrays_on_explicit_axes_inside_auto_axes",
        "sharded_attention_takes_axes_of_both_types_and_empty_arrays",
        "no_more_landmarks_than_tokens_are_made",
        "axes_and_batches_that_are_not_there_are_refused",
    ),
    ("eight_devices", "pieces"): (
        "convolution_and_means_are_those_of_the_whole",
        "landmarks_of_cut_examples_are_those_of_the_whole",
        "ties_of_the_maximum_go_to_the_first_as_on_one_device",
        "traffic_does_not_grow_with_the_length",
        "dropout_of_cut_sequences_is_the_wholes_wherever_padding_stands",
    ),
    ("eight_devices", "traffic"): ("examples_on_auto_axes_stay_on_their_devices",),
    ("eight_devices_steps", "steps"): (
        "a_step_on_any_mesh_is_the_same",
        "hidden_tokens_are_the_same_on_any_mesh",
    ),
    ("eight_devices_steps", "traffic"): ("a_data_parallel_step_moves_its_gradients",),
}


@pytest.mark.parametrize(("module", "name"), CHECKS)
def test_eight_devices(module, name, cache_home):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{module}", *CHECKS[module, name]],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(" ok") == len(CHECKS[module, name])


def test_sequences_that_are_whole_have_no_axis_and_need_no_collective():
    mesh = make_mesh(base.get_config())
    assert mesh.axis_names == ("data", "sequence")
    assert sequence_axis(mesh) is None and sequence_axis(None) is None
