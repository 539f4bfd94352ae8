"""What somebody types as the target of a draft."""

from __future__ import annotations

import pytest

from quantailor.app.steps import PlanOptions
from quantailor.errors import OptionError
from quantailor.gui.pages.choose.rule_dialog import with_target


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [("4.5 GiB", "size_bytes", int(4.5 * 2**30)), ("4.25bpw", "bits_per_weight", 4.25), (" 0.01 nats ", "kld_nats", 0.01)],
)
def test_a_target_is_typed_in_any_unit(text: str, field: str, value: float) -> None:
    options = with_target(PlanOptions(like="Q4_K_M", ties=("qkv",)), text)
    wanted = {"size_bytes": None, "bits_per_weight": None, "kld_nats": None, "like": None, field: value}
    assert {name: getattr(options, name) for name in wanted} == wanted
    assert options.ties == ("qkv",)


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match="'small' is not a size"):
        with_target(PlanOptions(), "small")
