"""Configurations of a training that contradict themselves, or come to nothing: told, and as early as can be."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow
HEAD = '{ train = "head", epochs = 3 }'


def phases(variant, *listed: str) -> None:
    """Other phases than those that the store has results of."""
    text = variant.config.read_text(encoding="utf-8")
    old = next(line for line in text.splitlines() if line.startswith("phases = "))
    variant.edit((old, f"phases = [{', '.join(listed)}]"))


def trained(variant) -> set[str]:
    return {path.name for path in variant.store.glob("finetune/*")}


@pytest.mark.parametrize(
    ("phase", "words", "hint"),
    [
        ('{ train = "names", names = ["blocks.99.*"] }', "no parameter of the network matches 'blocks.99.*'", "whole"),
        ('{ train = "last-stages", stages = 99 }', "stages = 99: the network has 6 stages", "they are stem, blocks.0"),
        ('{ train = "names", names = ["*bn?.*"], batchnorm = "frozen" }', "leaves nothing to train", ""),
    ],
)
def test_a_later_phase_that_selects_nothing_is_told_before_the_first_is_trained(edgetl, variant, phase, words, hint):
    before = trained(variant)
    phases(variant, HEAD, '{ train = "all", epochs = 1 }', phase)
    edgetl("train", variant.folder).failed(2, "error: phase 3: ", words, hint=hint)
    assert trained(variant) == before
    variant.assert_clean()


def test_no_phase_at_all_needs_weights_with_a_head_also_where_the_backbone_is_in_the_store(edgetl, variant):
    phases(variant)
    for command in (("train",), ("export",)):
        done = edgetl(*command, variant.folder)
        done.failed(2, "the weights bring no head for 3 classes, and finetune.phases is empty", hint='train = "head"')
        assert "cached" in done.err
    variant.assert_unpublished()


def test_a_phase_whose_goal_is_reached_before_it_says_that_it_trains_nothing(edgetl, variant):
    phases(variant, HEAD, '{ train = "all", epochs = 2, until = 0.01 }')
    done = edgetl("train", variant.folder)
    assert done.code == 0, done.err
    assert "phase 2 trains nothing: val is at 0." in done.err and "until = 0.01 asks for no more" in done.err
    assert "no epoch was as good" not in done.err


def test_a_training_that_goes_on_with_another_configuration_begins_anew(edgetl, start, variant):
    """What was saved of a phase that was killed belongs to its configuration, and is taken up again by it alone."""
    import time

    phases(variant, '{ train = "all", epochs = 400, lr = 1e-4, patience = 400 }')
    variant.edit(("batch_size = 16", "batch_size = 16\nsave_every_s = 0.1"))
    running = start("train", variant.folder)
    began = time.monotonic()
    while not list(variant.store.glob("unfinished/*/*")) and time.monotonic() - began < 120:
        time.sleep(0.1)
    running.send_signal(9)
    running.wait()
    [saved] = variant.store.glob("unfinished/*")
    kept = {path: path.read_bytes() for path in saved.iterdir()}
    phases(variant, '{ train = "all", epochs = 1, lr = 1e-4, patience = 400 }')
    done = edgetl("train", variant.folder)
    assert done.code == 0, done.err
    assert {path: path.read_bytes() for path in saved.iterdir()} == kept


@pytest.mark.parametrize("content", [None, "no key"])
def test_a_signing_key_that_cannot_sign_is_told_before_anything_is_trained(edgetl, variant, tmp_path, content):
    """In a pipeline the key is a secret's file; hours later the build ended with the code of a damaged bundle."""
    if content is not None:
        (tmp_path / "key.pem").write_text(content, encoding="utf-8")
    store = tmp_path / "new"
    done = edgetl("build", variant.folder, "--store", store, env={"EDGETL_BUNDLE_KEY": str(tmp_path / "key.pem")})
    done.failed(2, "bundle.key: ", "key.pem is not a private key that can be used", hint="openssl genpkey")
    assert not list(store.glob("*/*/*"))
    variant.assert_unpublished()
