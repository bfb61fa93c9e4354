"""What training makes smaller, and what calibration makes true."""

import numpy as np
import pytest
import torch
from torch import nn

from tileseg.network.unet import UNet
from tileseg.training.augment import jittered, turned
from tileseg.training.calibrate import calibration, cool, fit_temperature, head
from tileseg.training.losses import cross_entropy_and_dice


@pytest.fixture
def batch():
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 5, 7), dtype=torch.uint8)
    labels[0, :2] = 255
    return torch.randn(2, 4, 5, 7, requires_grad=True), labels


def loss_of(logits, labels, *, smoothing=0.0, dice=0.0):
    return cross_entropy_and_dice(logits, labels, smoothing=smoothing, dice=dice)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_dice_it_is_torchs_cross_entropy(batch, smoothing):
    logits, labels = batch
    theirs = nn.CrossEntropyLoss(ignore_index=255, label_smoothing=smoothing)

    expected = theirs(logits, labels.long())

    torch.testing.assert_close(loss_of(logits, labels, smoothing=smoothing), expected)


def test_dice_is_the_f1_of_chances(batch):
    """Class by class, the simple way, over the labelled pixels."""
    logits, labels = batch
    labels[labels == 3] = 255  # a class that is not there counts for nothing
    chances = torch.softmax(logits, dim=1).movedim(1, -1)[labels != 255]
    truth = labels[labels != 255]
    scores = []
    for value in range(3):
        said, true = chances[:, value], (truth == value).float()
        both = (said * true).sum()
        scores.append(1 - (2 * both + 1) / (said.sum() + true.sum() + 1))

    actual = loss_of(logits, labels, dice=2.0) - loss_of(logits, labels)

    torch.testing.assert_close(actual, 2 * torch.stack(scores).mean())


def test_parts_of_a_batch_have_the_gradients_of_the_whole(batch):
    """Given the sums of all of it: also a part in which a class, or all, is unknown."""
    logits, labels = batch
    labels[0] = 255
    wish = {"smoothing": 0.1, "dice": 0.7}
    seen = []
    whole = cross_entropy_and_dice(
        logits, labels, **wish, total=lambda sums: seen.append(sums.detach()) or sums
    )
    whole.backward()
    parts = logits.detach().clone().requires_grad_()

    for tile in range(2):
        loss = cross_entropy_and_dice(
            parts[tile, None], labels[tile, None], **wish,
            total=lambda mine: seen[0] + (mine - mine.detach()),
        )  # fmt: skip
        torch.testing.assert_close(loss, whole)
        loss.backward()

    torch.testing.assert_close(parts.grad, logits.grad)


def test_what_is_not_known_moves_nothing(batch):
    logits, labels = batch
    labels[1, 3:, 2:] = 255

    loss_of(logits, labels, smoothing=0.05, dice=0.5).backward()

    moved = logits.grad.abs().sum(dim=1) > 0
    assert torch.equal(moved, labels != 255)


def test_a_batch_without_labels_is_no_fault(batch):
    logits, labels = batch

    loss = loss_of(logits, torch.full_like(labels, 255), smoothing=0.05, dice=0.5)

    assert loss.item() == 0


def test_the_eight_symmetries_are_all_there_and_move_labels_alike():
    tile = np.arange(2 * 5 * 5).reshape(2, 5, 5)

    there = [turned(tile, n) for n in range(8)]

    assert len({item.tobytes() for item in there}) == 8
    np.testing.assert_array_equal(there[0], tile)
    for n, item in enumerate(there):
        np.testing.assert_array_equal(item[0], turned(tile[0], n))


def test_jitter_is_small_and_may_be_none():
    tile = np.random.default_rng(0).normal(size=(3, 40, 31)).astype(np.float32)

    same, changed = (jittered(tile, np.random.default_rng(1), s) for s in (0.0, 1.0))

    np.testing.assert_array_equal(same, tile)
    assert changed.dtype == np.float32
    assert 0.01 < np.abs(changed - tile).mean() < 0.5


@pytest.mark.parametrize("hot", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_again_and_confidence_becomes_true(hot):
    """Labels drawn by the chances of some logits; then these are made too sure."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20_000, 5))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    draws = random.random((len(logits), 1))
    labels = (chances.cumsum(axis=1) < draws).sum(axis=1).astype(np.uint8)
    said = (logits * hot).astype(np.float32)

    found = fit_temperature(said, labels)

    assert found == pytest.approx(hot, rel=0.05)
    assert calibration(said, labels, found).error < 0.02
    if hot != 1:
        assert calibration(said, labels).error > 0.1


def test_of_no_pixel_the_temperature_is_one():
    assert fit_temperature(np.empty((0, 3), np.float32), np.empty(0, np.uint8)) == 1


def test_cooling_divides_logits_and_changes_no_label():
    torch.manual_seed(0)
    network, tiles = UNet(3, 4, width=4, depth=2), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        before = network(tiles)
        cool(network, 2.5)
        after = network(tiles)

    assert head(network) is network.final_conv
    torch.testing.assert_close(after, before / 2.5)
    assert torch.equal(after.argmax(dim=1), before.argmax(dim=1))
