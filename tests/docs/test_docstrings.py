"""Each public name says what it is; ops, losses and estimators also shapes, dtypes, errors."""

import importlib
import inspect
import re

import pytest

PUBLIC = ("robustft", "robustft.ops", "robustft.losses", "robustft.neighbors", "robustft.ensemble",
          "robustft.models", "robustft.methods", "robustft.train", "robustft.data",
          "robustft.evaluate")  # fmt: skip
# Whose arguments are tensors that may be wrong in shape or dtype.
ON_TENSORS = (
    *(f"robustft.ops.{x}" for x in ("dive_loss", "knn", "kth_distance", "mpm_nce", "rsa")),
    *(f"robustft.ops.{x}" for x in ("vrf_mix", "FeatureBank")),
    *(f"robustft.losses.{x}" for x in ("CLIPLoss", "DiVELoss", "MPMNCELoss", "NTXentLoss")),
    *("robustft.losses.SupConLoss", "robustft.neighbors.KNeighbors", "robustft.VRF"),
)
SHAPE = re.compile(r"\[[A-Z][\w·' ]*(, ?[\w·'. ]+)*\]|\bscalar\b")
DTYPE = re.compile(r"float32|float16|bfloat16|int64|integer|floating|dtype")


def everything():
    for module in PUBLIC:
        whole = importlib.import_module(module)
        own = getattr(whole, "__all__", None)
        if own is None:
            own = [x for x, y in vars(whole).items() if getattr(y, "__module__", "") == module]
        for name in own:
            found = getattr(whole, name)
            if not name.startswith("_") and (inspect.isclass(found) or inspect.isroutine(found)):
                yield f"{module}.{name}", found


EVERYTHING = dict(everything())


def members(found):
    """A class's own public methods and properties."""
    for name, member in vars(found).items():
        member = getattr(member, "__func__", member)
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
            yield name, member


def said(found):
    """All that the docstrings of a name tell."""
    parts = [inspect.getdoc(found)]
    if inspect.isclass(found):
        ours = [x for x in found.__mro__ if x.__module__.startswith("robustft")]
        parts += [inspect.getdoc(member) for one in ours for _, member in members(one)]
        parts += [inspect.getdoc(one) for one in ours]
    return "\n".join(filter(None, parts))


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_public_name_says_what_it_is(name):
    found = EVERYTHING[name]
    own = vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__
    assert own, f"{name} has no docstring"
    assert not re.match(r"\w+\(.*\)$", own), f"{name} has a dataclass's automatic docstring"
    if inspect.isclass(found) and found.__module__.startswith("robustft"):
        inherited = {x for base in found.__mro__[1:] for x in vars(base)}
        bare = [x for x, member in members(found) if not member.__doc__ and x not in inherited]
        assert bare == [], f"{name}: without a docstring"


@pytest.mark.parametrize("name", ON_TENSORS)
def test_what_takes_tensors_says_shapes_dtypes_and_errors(name):
    text = said(EVERYTHING[name])
    assert SHAPE.search(text), f"{name} says no shape"
    assert DTYPE.search(text), f"{name} says no dtype"
    assert "Error" in text, f"{name} says no error"


@pytest.mark.parametrize("name", ON_TENSORS)
def test_every_argument_is_spoken_of(name):
    found = EVERYTHING[name]
    calls = [found.__init__, getattr(found, "forward", None)] if inspect.isclass(found) else [found]
    taken = {x for call in calls if call for x in inspect.signature(call).parameters}
    text = said(found)
    unsaid = [x for x in taken - {"self"} if not re.search(rf"\b{x}\b", text)]
    assert sorted(unsaid) == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_function_that_refuses_its_input_says_so(name):
    found = EVERYTHING[name]
    if inspect.isclass(found) or not found.__module__.startswith("robustft"):
        return
    if re.search(r"raise Input\w*Error", inspect.getsource(found)):
        assert "Error" in said(found), f"{name} raises InputError and does not say when"
