"""What users of the package depend on."""

import inspect
import re
from types import ModuleType

import msgspec
import pytest

import orders
from dev.sandbox.process import ROOT
from orders import handlers, subscriber
from orders.model import events, order
from orders.model.events import Data, Envelope
from orders.model.order import Line, Order
from orders.subscriber import Subscription

PUBLIC = {
    handlers: {
        "BlockingHandler", "Handler", "PlainHandler", "Refuse", "Retry", "TransactionalHandler", "do_nothing",
        "wait_a_little",
    },
    subscriber: {"EventHandler", "Prepare", "Subscription", "main"},
    order: {"Line", "Order", "Status"},
    events: {"Data", "Envelope", "EventType", "open_envelope"},
}  # fmt: skip


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_modules(module: ModuleType) -> None:
    """
    The package's docstring names the public modules, each says that it is public, and which of its names are.
    """
    assert set(module.__all__) == PUBLIC[module]
    assert all(hasattr(module, name) for name in module.__all__)
    assert "public API" in (module.__doc__ or "").replace("Public", "public")
    assert module.__name__ in (orders.__doc__ or "")


@pytest.mark.parametrize("struct", [Order, Line, Envelope, Data, Subscription], ids=lambda struct: struct.__name__)
def test_each_public_field_is_documented(struct: type[msgspec.Struct]) -> None:
    """
    Each field has a comment for users above it: what it is, its unit, and when it is None.
    """
    documented = re.findall(r"^    #: .*(?:\n    #: .*)*\n    (\w+):", inspect.getsource(struct), re.MULTILINE)
    assert documented == list(struct.__struct_fields__)


def test_packages_are_typed() -> None:
    """
    Type checkers of users read the annotations of both packages.
    """
    assert all((ROOT / package / "py.typed").is_file() for package in ("src/orders", "relay"))
