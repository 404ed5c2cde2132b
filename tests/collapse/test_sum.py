"""Weighted sums: values, names, numbers of views, state, and what recipes make of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from torchjepa.collapse import LeJEPA, SIGReg, Sum, VCReg, VICReg, named_terms
from torchjepa.recipes.serial import from_json, to_json
from torchjepa.testing import check_regularizer


def views(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    z_a, z_b = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *shape)))
    return z_a, z_b


def test_values_and_names() -> None:
    z_a, z_b = views(8, 4)
    vicreg, sigreg = VICReg().compute(z_a, z_b), SIGReg(num_slices=4).loss(z_a, z_b)
    terms = Sum((VICReg(), SIGReg(num_slices=4)), (0.5, 3.0)).compute(z_a, z_b)
    torch.testing.assert_close(terms.total(), 0.5 * vicreg.total() + 3.0 * sigreg)
    named = named_terms(terms)
    assert list(named) == ["invariance", "variance", "covariance", "sigreg"]
    torch.testing.assert_close(named["variance"], 0.5 * vicreg.variance)
    torch.testing.assert_close(named["sigreg"], 3.0 * sigreg)


def test_terms_of_one_name_are_told_apart() -> None:
    parts = (SIGReg(num_slices=4), VCReg(), SIGReg(num_slices=4, over="time"), VICReg())
    named = named_terms(Sum(parts).compute(*views(6, 5, 4)))
    assert list(named) == [
        "sigreg_sigreg",
        "vcreg_variance",
        "vcreg_covariance",
        "sigreg2_sigreg",
        "invariance",
        "vicreg_variance",
        "vicreg_covariance",
    ]


def test_a_sum_of_sums() -> None:
    z_a, z_b = views(8, 4)
    inner = Sum((VICReg(), SIGReg(num_slices=4)), (1.0, 2.0))
    torch.testing.assert_close(
        Sum((inner, VCReg()), (0.5, 1.0)).loss(z_a, z_b),
        0.5 * VICReg().loss(z_a, z_b) + SIGReg(num_slices=4).loss(z_a, z_b) + VCReg().loss(z_a, z_b),
    )


def test_numbers_of_views() -> None:
    assert Sum((VCReg(), SIGReg())).num_views == (1, None)
    assert Sum((VICReg(), SIGReg())).num_views == (2, 2)
    assert Sum((SIGReg(), LeJEPA(num_global_views=3))).num_views == (3, None)
    with pytest.raises(ValueError, match=r"no number of views fits .*VICReg \(2, 2\), LeJEPA \(3, None\)"):
        Sum((VICReg(), LeJEPA(num_global_views=3)))
    with pytest.raises(ValueError, match=r"VICReg: takes 2 view.* got 1"):
        Sum((VICReg(), SIGReg())).loss(views(8, 4)[0])


def test_the_parts_keep_their_state() -> None:
    z_a, z_b = views(8, 4)
    both = Sum((SIGReg(num_slices=4), VICReg(), SIGReg(num_slices=4, seed=1)))
    both.loss(z_a, z_b)
    state = both.state_dict()
    assert list(state) == ["0._extra_state", "2._extra_state"]
    resumed = Sum((SIGReg(num_slices=4), VICReg(), SIGReg(num_slices=4, seed=1)))
    resumed.load_state_dict(state)
    assert resumed.loss(z_a, z_b) == both.loss(z_a, z_b)
    assert both.eval().loss(z_a, z_b) == both.loss(z_a, z_b)


def test_fields_can_be_replaced() -> None:
    weighted = dataclasses.replace(Sum((VICReg(), VCReg())), weights=(2.0, 0.0))
    z_a, z_b = views(8, 4)
    torch.testing.assert_close(weighted.loss(z_a, z_b), 2.0 * VICReg().loss(z_a, z_b))


def test_recipes_write_and_read_the_fields() -> None:
    base = Sum((VICReg(), LeJEPA()), (1.0, 0.1))
    changed = Sum((VICReg(gamma=2.0), LeJEPA(0.02, 1, SIGReg(num_slices=64, seed=3))), (0.5, 2.0))
    written = json.loads(json.dumps(to_json(changed)))
    assert to_json(from_json(base, written)) == written
    assert base.parts[1].weight == 0.05


def test_keeps_the_contract() -> None:
    check_regularizer(Sum((VICReg(), SIGReg(num_slices=8)), (1.0, 0.1)))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"Sum: needs at least one part .*got 0 part\(s\) and 0 weight"):
        Sum(())
    with pytest.raises(ValueError, match=r"Sum: .*got 1 part\(s\) and 2 weight"):
        Sum((VICReg(),), (1.0, 2.0))
    with pytest.raises(ValueError, match=r"Sum: weights\[1\] must be a finite number of at least 0, got -1"):
        Sum((VICReg(), SIGReg()), (1.0, -1.0))
    with pytest.raises(ValueError, match=r"Sum: parts\[0\] must have compute\(\*views\) .*, got float"):
        Sum((1.0,))  # type: ignore[arg-type]
