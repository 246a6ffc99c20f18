"""Several devices: eight virtual ones, in processes of their own."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CHECKS = {
    "attention": (
        "sharded_attention_is_attention",
        "arrays_on_a_mesh_of_explicit_axes_are_attended_to",
        "heads_of_keys_on_explicit_axes_may_be_shared",
        "models_take_arrays_on_explicit_axes_inside_auto_axes",
        "sharded_attention_takes_axes_of_both_types_and_empty_arrays",
        "no_more_landmarks_than_tokens_are_made",
        "axes_and_batches_that_are_not_there_are_refused",
    ),
    "pieces": (
        "convolution_and_means_are_those_of_the_whole",
        "landmarks_of_cut_examples_are_those_of_the_whole",
        "ties_of_the_maximum_go_to_the_first_as_on_one_device",
        "traffic_does_not_grow_with_the_length",
        "dropout_of_cut_sequences_is_the_wholes_wherever_padding_stands",
    ),
    "steps": ("a_step_on_any_mesh_is_the_same", "hidden_tokens_are_the_same_on_any_mesh"),
    "traffic": (
        "a_data_parallel_step_moves_its_gradients",
        "examples_on_auto_axes_stay_on_their_devices",
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_eight_devices(name, cache_home):
    done = subprocess.run(
        [sys.executable, "-m", "tests.eight_devices", *CHECKS[name]],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(" ok") == len(CHECKS[name])
