"""The model for video classification: losses by hand, missing modalities, unknown labels, and how its bias starts."""

import math

import pytest
import torch
from transformers import AutoModelForVideoClassification

from simple_multimodal.modalities import INPUT_KEYS
from simple_multimodal.models.losses import asymmetric_loss, label_smoothed_loss
from simple_multimodal.tasks.video_classification.modeling import (
    MULTI_LABEL,
    SINGLE_LABEL,
    MultimodalForVideoClassification,
)
from simple_multimodal.tasks.video_classification.options import LOSSES
from tests.closeness import assert_close
from tests.evaluation.charades_annotations import read_golden
from tests.models import tiny

FORMS = ("merge", "co_attention", "cross_attention")

# Computed from the formula in float64, entry by entry.
LOGITS = torch.tensor([[-2.0, 0.5, 3.0], [1.0, -0.25, -4.0]], dtype=torch.float64)
LABELS = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def by_formula(positive_focus: float, negative_focus: float, margin: float) -> float:
    total = 0.0
    for logit, label in zip(LOGITS.flatten().tolist(), LABELS.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        q = max(p - margin, 0)
        total -= (1 - p) ** positive_focus * math.log(p) if label else q**negative_focus * math.log(1 - q)
    return total


@pytest.mark.parametrize("values", [*LOSSES.values(), (1.0, 4.0, 0.05), (0.0, 0.5, 0.2)], ids=str)
def test_losses_of_many_labels_follow_the_formula(values):
    names = ("positive_focus", "negative_focus", "negative_margin")
    settings = dict(zip(names, values, strict=True))
    assert asymmetric_loss(LOGITS, LABELS, **settings).item() == pytest.approx(by_formula(*values), rel=1e-12)
    in_float32 = asymmetric_loss(LOGITS.float(), LABELS.float(), **settings).item()
    assert in_float32 == pytest.approx(by_formula(*values), rel=1e-6)
    unknown = torch.cat([LABELS, torch.full((1, 3), torch.nan)])
    logits = torch.cat([LOGITS, torch.tensor([[90.0, -90.0, 0.0]])]).requires_grad_()
    loss = asymmetric_loss(logits, unknown, **settings)
    loss.backward()
    assert loss.item() == pytest.approx(by_formula(*values), rel=1e-12)
    assert logits.grad.isfinite().all() and (logits.grad[2] == 0).all()


def test_losses_of_many_labels_have_the_golden_values(shared_dir):
    golden = read_golden(shared_dir)["losses"]
    logits, labels = torch.tensor(golden["logits"]), torch.tensor(golden["labels"])
    for key, expected in golden["gamma_positive_negative_margin"].items():
        settings = dict(zip(NAMES, map(float, key.split("_")), strict=True))
        assert asymmetric_loss(logits, labels, **settings).item() / labels.numel() == pytest.approx(expected, rel=1e-6)


def test_binary_cross_entropy_and_smoothed_cross_entropy_are_those_of_torch():
    expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="sum")
    assert_close(asymmetric_loss(LOGITS, LABELS), expected)
    labels = torch.tensor([2, -1])
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(LOGITS[:1], labels[:1], label_smoothing=smoothing)
        assert_close(label_smoothed_loss(LOGITS, labels, smoothing=smoothing), expected)
    assert label_smoothed_loss(LOGITS, torch.tensor([-1, -1])).item() == 0


@pytest.mark.parametrize("value", [200.0, -200.0])
def test_extreme_logits_have_finite_losses_and_gradients(value):
    for label in (0.0, 1.0):
        for settings in LOSSES.values():
            logits = torch.tensor([[value]], requires_grad=True)
            loss = asymmetric_loss(logits, torch.tensor([[label]]), **dict(zip(NAMES, settings, strict=True)))
            loss.backward()
            assert loss.isfinite() and logits.grad.isfinite().all()


NAMES = ("positive_focus", "negative_focus", "negative_margin")


def model_of(form: str, kind: str = MULTI_LABEL, **settings) -> MultimodalForVideoClassification:
    torch.manual_seed(0)
    config = tiny.tiny_config(form, num_labels=3, problem_type=kind, **settings)
    return tiny.randomize(MultimodalForVideoClassification(config))


@pytest.mark.parametrize("form", FORMS)
def test_what_a_row_lacks_does_not_change_its_logits(form):
    """The inputs behind a missing modality are arbitrary; every modality that is there counts."""
    model, batch = model_of(form), tiny.make_batch()
    with torch.no_grad():
        logits = model.class_logits(batch)
    for modality in ("text", "audio", "video"):
        mask = batch[f"{modality}_mask"]
        name = INPUT_KEYS[modality][0]
        changed = batch[name].clone()
        noise = torch.randint(1, 9, changed.shape).to(changed.dtype)
        with torch.no_grad():
            there = model.class_logits({**batch, name: torch.where(_rows(mask, changed), noise, changed)})
            missing = model.class_logits({**batch, name: torch.where(_rows(~mask, changed), noise, changed)})
        assert_close(missing, logits)
        assert (there - logits)[mask].abs().amax(dim=1).min() > 1e-5
    assert mask.any() and not mask.all()


def _rows(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))


@pytest.mark.parametrize(
    "modalities", [("video",), ("audio",), ("text",), ("audio", "video"), ("text", "video")], ids=str
)
def test_every_set_of_modalities_can_be_classified(modalities):
    left_out = {f"{m}_config": None for m in ("text", "audio", "video") if m not in modalities}
    model = model_of("cross_attention", **left_out)
    output = model(labels=torch.ones(6, 3), **tiny.make_batch())
    assert output.logits.shape == (6, 3) and output.loss.isfinite()


def test_unknown_labels_are_left_out_of_the_loss_and_its_count():
    one, many = model_of("merge", SINGLE_LABEL), model_of("merge")
    batch = tiny.make_batch()
    labels = torch.tensor([0, -1, 2, 1, -1, 0])
    known = labels >= 0
    assert one.count_items({"labels": labels})["classification"] == 4
    output = one(labels=labels, **batch)
    assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits[known], labels[known]))
    hot = torch.nn.functional.one_hot(labels.clamp(min=0), 3).float()
    hot[~known] = torch.nan
    assert many.count_items({"labels": hot})["classification"] == 12
    output = many(labels=hot, **batch)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits[known], hot[known])
    assert_close(output.loss, expected)
    assert many(labels=torch.full((6, 3), torch.nan), **batch).loss == 0


def test_labels_are_smoothed_in_training_only_and_only_single_ones():
    model, batch, labels = (
        model_of("merge", SINGLE_LABEL, classifier_dropout=0.0),
        tiny.make_batch(),
        torch.arange(6) % 3,
    )
    plain = model(labels=labels, **batch)
    model.smooth_labels(0.2)
    assert model(labels=labels, **batch).loss == plain.loss
    model.train()
    expected = torch.nn.functional.cross_entropy(plain.logits, labels, label_smoothing=0.2)
    assert_close(model(labels=labels, **batch).loss, expected)
    with pytest.raises(ValueError, match="--label_smoothing_factor is for one label per clip.*asymmetric"):
        model_of("merge").smooth_labels(0.1)


@pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTI_LABEL])
def test_a_new_classifier_starts_from_the_frequencies_of_its_labels(kind, tmp_path):
    shares = [0.5, 0.3, 0.2]
    settings = {"num_labels": 3, "problem_type": kind, "label_frequencies": shares}
    model = MultimodalForVideoClassification(tiny.tiny_config(**settings))
    bias = model.classifier.bias
    found = bias.sigmoid() if kind == MULTI_LABEL else bias.softmax(dim=0)
    assert_close(found, torch.tensor(shares))
    with torch.no_grad():
        bias.fill_(7.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(loaded) is MultimodalForVideoClassification and loaded.config.problem_type == kind
    assert (loaded.classifier.bias == 7).all()
    certain = tiny.tiny_config(num_labels=3, problem_type=kind, label_frequencies=[1.0, 0.0, 0.0])
    assert MultimodalForVideoClassification(certain).classifier.bias.isfinite().all()
