"""The baseline that sees the text alone."""

import numpy as np
import pytest
import torch

from simple_multimodal.evaluation.average_precision import average_precisions
from simple_multimodal.evaluation.text_baseline import (
    INVERSE_REGULARIZATION,
    _word_vectors,
    _words_of,
    text_baseline_scores,
)
from tests.evaluation.charades_annotations import read_split

TEXTS = ["A dog runs.", "A dog barks, a dog!", "the cat sleeps", "The cat and the dog sleep", "I", ""]
LABELS = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)  # none in the last


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def as_matrix(vectors, num_words: int) -> np.ndarray:
    matrix = np.zeros((len(vectors.lengths), num_words))
    rows = np.repeat(np.arange(len(matrix)), vectors.lengths.numpy())
    matrix[rows, vectors.columns.numpy()] = vectors.values.numpy()
    return matrix


def test_word_vectors_by_hand():
    words = _words_of(TEXTS)
    assert list(words) == ["and", "barks", "cat", "dog", "runs", "sleep", "sleeps", "the"]
    dog, barks = 1 + np.log(7 / 4), 1 + np.log(7 / 2)  # in three of six texts, and in one
    assert words["dog"] == (3, pytest.approx(dog))
    matrix = as_matrix(_word_vectors(["Dog barks dog; zebra", "zebra", ""], words), len(words))
    np.testing.assert_allclose(matrix[0, [1, 3]], np.array([barks, 2 * dog]) / np.hypot(barks, 2 * dog))
    assert np.count_nonzero(matrix) == 2


def objective(matrix, targets, weights, biases, is_single) -> torch.Tensor:
    logits = matrix @ weights + biases
    if is_single:
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    else:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return INVERSE_REGULARIZATION * losses + weights.square().sum() / 2


@pytest.mark.parametrize("is_single", [True, False])
def test_scores_equal_those_of_the_minimum(is_single):
    """Found by Newton's method with automatic derivatives, over dense vectors."""
    labels = np.array([0, 0, 1, 1, 1, 0]) if is_single else LABELS[:, :2]
    scores = text_baseline_scores(TEXTS, labels, TEXTS[:4], num_classes=2)
    words = _words_of(TEXTS)
    matrix = torch.from_numpy(as_matrix(_word_vectors(TEXTS, words), len(words)))
    targets = torch.from_numpy(np.eye(2)[labels] if is_single else labels.astype(float))
    flat = torch.zeros((len(words) + 1) * 2).double()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        both = flat.view(-1, 2)
        # the biases of a softmax are defined up to a constant, which this fixes
        return objective(matrix, targets, both[:-1], both[-1], is_single) + 1e-9 * both[-1].square().sum()

    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(loss, flat)
        flat = flat - torch.linalg.solve(torch.autograd.functional.hessian(loss, flat), gradient)
    logits = (matrix @ flat.view(-1, 2)[:-1] + flat.view(-1, 2)[-1])[:4]
    expected = logits.softmax(dim=1) if is_single else logits.sigmoid()
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-6)


def test_texts_without_known_words_get_the_shares_of_the_classes():
    unknown = ["", "a I !", "zebra giraffe"]
    scores = text_baseline_scores(TEXTS, LABELS, [*unknown, "dog"])
    np.testing.assert_allclose(scores[:3], np.tile(LABELS.mean(axis=0), (3, 1)))
    assert scores[3, 0] > LABELS[:, 0].mean()
    scores = text_baseline_scores(TEXTS, np.array([0, 0, 1, 3, 1, 0]), [*unknown, "dog"], num_classes=4)
    np.testing.assert_allclose(scores[:3], np.tile([3 / 6, 2 / 6, 0, 1 / 6], (3, 1)))
    np.testing.assert_allclose(scores.sum(axis=1), 1)


def test_classes_of_no_training_row_or_of_all_keep_their_share():
    labels = np.column_stack([LABELS[:, 0], np.zeros(6, bool), np.ones(6, bool)])
    scores = text_baseline_scores(TEXTS, labels, ["dog", "cat"])
    np.testing.assert_array_equal(scores[:, 1:], [[0, 1], [0, 1]])
    assert scores[0, 0] > 0.5 > scores[1, 0]
    np.testing.assert_array_equal(text_baseline_scores(["dog"], np.array([1]), ["dog"], num_classes=2), [[0, 1]])


def test_training_texts_without_words_give_the_shares():
    np.testing.assert_allclose(text_baseline_scores(["", "a"], np.eye(2, dtype=bool), ["dog", ""]), 1 / 2)


def test_no_text_gives_no_score():
    assert text_baseline_scores(TEXTS, LABELS, []).shape == (0, 3)


@pytest.mark.parametrize("is_single", [True, False])
def test_scores_do_not_depend_on_the_number_of_threads(num_threads, is_single):
    generator = np.random.default_rng(0)
    labels = generator.integers(7, size=300)
    texts = [" ".join(f"word{number}" for number in generator.integers(label, label + 40, size=9)) for label in labels]
    labels = labels if is_single else np.eye(7, dtype=bool)[labels] | (generator.random((300, 7)) < 0.1)
    found = []
    for count in (1, 2):
        num_threads(count)
        found.append(text_baseline_scores(texts[:200], labels[:200], texts[200:], num_classes=7))
    np.testing.assert_allclose(found[0], found[1], atol=1e-8)


@pytest.mark.parametrize(
    ("texts", "labels", "num_classes", "message"),
    [
        ([], np.zeros((0, 2), bool), None, "at least one: got 0 texts"),
        (["a", "b"], np.zeros((3, 2), bool), None, r"2 texts and labels of shape \(3, 2\)"),
        (["a", "b"], np.zeros((2, 2)), None, "must be bool"),
        (["a", "b"], np.array([0, 1]), None, "together with num_classes"),
        (["a", "b"], np.array([0, 2]), 2, "from 0 to 1, got 0 to 2"),
        (["a", "b"], np.array([-1, 1]), 2, "without a known label"),
    ],
)
def test_invalid_labels_are_refused(texts, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        text_baseline_scores(texts, labels, ["a"], num_classes=num_classes)


@pytest.mark.slow
def test_the_scripts_of_charades_give_labels_away(shared_dir):
    """By the evaluation script's rules; a reference with scikit-learn reached an mAP of 0.500."""
    train, test = (read_split(shared_dir, split) for split in ("train", "test"))
    scores = text_baseline_scores(train.scripts, train.labels, test.scripts)
    has_class = test.labels.any(axis=1)
    mean = average_precisions(scores[has_class], test.labels[has_class], ties="file_order").mean()
    assert mean == pytest.approx(0.512, abs=0.005)
    given = scores > 0.5
    assert 2 * (given & test.labels).sum() / (given.sum() + test.labels.sum()) == pytest.approx(0.41, abs=0.01)
