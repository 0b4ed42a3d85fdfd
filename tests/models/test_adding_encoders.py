"""The complete examples of docs/adding_encoders.md pass the tests of every encoder of the registry."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from simple_multimodal.models.encoders import ENCODERS

from . import test_registry

GUIDE = Path(__file__).resolve().parents[2] / "docs/adding_encoders.md"
EXAMPLES = {
    example: re.search(r"^class (\w+Encoder)\(", example, re.MULTILINE)[1]
    for example in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    if example.startswith('"""') and "OtherModel" not in example
}
"""Modules that can be run unchanged, and the class that each of them adds."""


@pytest.fixture(scope="module", params=EXAMPLES, ids=EXAMPLES.get)
def added(request, tmp_path_factory):
    """Return the key of an example's encoder, which is in the registry for these tests."""
    path = tmp_path_factory.mktemp("guide") / f"{EXAMPLES[request.param]}.py"
    path.write_text(request.param, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    encoder = getattr(module, EXAMPLES[request.param])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, (encoder.modality, encoder.model_type), encoder)
        yield encoder.modality, encoder.model_type


def test_examples_are_found():
    assert set(EXAMPLES.values()) == {"ElectraTextEncoder", "UniSpeechAudioEncoder", "BeitVideoEncoder"}


@pytest.mark.parametrize(
    "check",
    [
        test_registry.test_tokens_equal_those_of_the_stock_model_for_each_row_alone,
        test_registry.test_a_row_does_not_depend_on_its_neighbours,
        test_registry.test_tokens_of_one_step_have_the_same_time,
        test_registry.test_a_saved_tower_loads_unchanged,
        test_registry.test_every_parameter_is_trained_or_frozen_for_good,
        test_registry.test_recomputed_activations_give_the_same_gradients,
        test_registry.test_each_parameter_belongs_to_one_layer,
        test_registry.test_adapters_affect_the_output_of_the_tower,
    ],
)
def test_an_example_passes_the_tests_of_every_encoder(added, check, tmp_path):
    given = {"key": added, "tmp_path": tmp_path}
    check(**{name: given[name] for name in inspect.signature(check).parameters})
