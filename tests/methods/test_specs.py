"""Each method's SPEC: what plan, the warnings and the settings learn from it."""

import dataclasses

import pytest

from mocokit.methods import SPECS, add_method, find_method, method_of
from mocokit.methods.contract import MethodSpec, RunFacts
from mocokit.methods.moco import MoCoSettings


def warnings_of(name: str, *, num_images: int = 1000, has_batchnorm: bool = True, **settings: object) -> list[str]:
    spec = find_method(name)
    facts = RunFacts(num_images=num_images, has_batchnorm=has_batchnorm)
    return spec.warnings(spec.settings(**{"bn_groups": 4, **settings}), facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_settings_know_their_method(name: str) -> None:
    spec = SPECS[name]
    settings = spec.settings()  # type: ignore[call-arg]  # every subclass gives the name a default
    assert (spec.name, settings.name, method_of(settings)) == (name, name, spec)


def test_settings_that_make_shuffling_batchnorm_a_no_op_are_warned_of() -> None:
    assert warnings_of("moco", queue_size=100) == []
    assert "shuffling BN has no effect" in warnings_of("moco", queue_size=100, bn_groups=1)[0]
    assert "share BatchNorm statistics" in warnings_of("moco", queue_size=100, shuffle=False)[0]
    assert "more negatives than the 50 images" in warnings_of("moco", queue_size=100, num_images=50)[0]
    assert warnings_of("moco", queue_size=100, num_images=50, mask_same_image=True) == []
    assert "only costs time" in warnings_of("moco", queue_size=100, has_batchnorm=False)[0]


@pytest.mark.parametrize("name", ["simclr", "moco-v3", "memory-bank"])
def test_methods_without_a_leak_are_not_warned_of_one(name: str) -> None:
    assert warnings_of(name, bn_groups=1, num_images=50) == []


@pytest.mark.parametrize("name", ["simclr", "moco-v3"])
def test_views_that_share_small_groups_are_warned_of(name: str) -> None:
    assert "method.bn_groups=4: both views" in warnings_of(name)[0]
    assert warnings_of(name, has_batchnorm=False) == []


def test_end_to_end_keys_can_leak_as_mocos() -> None:
    assert "shuffling BN has no effect" in warnings_of("end-to-end", bn_groups=1)[0]


def test_the_memory_of_a_method_is_that_of_its_buffers() -> None:
    """MoCo: 65536 keys of 128 floats and an index each; the bank: a feature and a flag an image."""
    moco = find_method("moco")
    assert moco.state_bytes(MoCoSettings(), dim=128, num_images=10) == 65536 * (128 * 4 + 8)
    bank = find_method("memory-bank")
    assert bank.state_bytes(bank.settings(), dim=128, num_images=1000) == 1000 * (128 * 4 + 1)  # type: ignore[call-arg]
    simclr = find_method("simclr")
    assert simclr.state_bytes(simclr.settings(), dim=128, num_images=1000) == 0  # type: ignore[call-arg]


def test_an_unknown_method_names_the_nearest_and_says_how_to_give_one() -> None:
    with pytest.raises(
        ValueError, match=r"method.name='mocov3': unknown; did you mean moco-v3\? .*--method-from PACKAGE"
    ):
        find_method("mocov3")


def test_what_is_no_spec_or_takes_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method=3: not a mocokit.MethodSpec"):
        add_method(3)
    other: MethodSpec = dataclasses.replace(SPECS["moco"], model_settings=())
    with pytest.raises(ValueError, match=r"method='moco': another method has this name"):
        add_method(other)
    assert add_method(SPECS["moco"]) is SPECS["moco"]
