import dataclasses
import json
import os
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brenier.coordinates import ClassCoordinates, Frame, PairCoordinates
from brenier.costs import (
    CoordinatewisePower,
    Cosh,
    FramedCost,
    Mahalanobis,
    Power,
    PseudoHuber,
    Quadratic,
    Relativistic,
    SquaredNorm,
)
from brenier.drifts import DriftFunction, FramedDrift
from brenier.errors import BrenierWarning, FileFormatError, InputError, OutputError
from brenier.files import read_container, write_container
from brenier.flow import FlowTransport
from brenier.gaussian import GaussianPotential
from brenier.hopf_lax import EndSlices, HopfLaxPotential
from brenier.networks import (
    ACTIVATIONS,
    MLP,
    Comoving,
    ConvPotential,
    DenseQuadratic,
    FiLM,
    ResidualMap,
    ResNet,
    SumPotential,
    UNet,
)
from brenier.serialization import CLASSES, load, save
from brenier.solution import Metadata, Solution
from brenier.transport import CharacteristicTransport, MapTransport

KEY = jax.random.key(0)


def gaussian(dim):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 50, dim))
    return GaussianPotential.from_samples(x, 2.0 * y + 1.0)


def hopf_lax(dim, classes=0):
    start, end = (MLP(dim, (4,), key=jax.random.fold_in(KEY, i)) for i in range(2))
    samples = np.random.default_rng(1).normal(size=(2, 50, dim))
    pair = (
        ClassCoordinates.from_samples(*samples, classes)
        if classes
        else PairCoordinates.from_samples(*samples)
    )
    return HopfLaxPotential(EndSlices(start, end, jnp.asarray(0.5)), Quadratic(), pair)


NETWORKS = {
    "mlp": lambda dim: MLP(dim, (6, 5), sharpness=10.0, key=KEY),
    "dense_quadratic": lambda dim: DenseQuadratic(dim, (6, 5, 4), key=KEY),
    "resnet": lambda dim: ResNet(dim, 6, 2, step=1 / 3, key=KEY),
    "film": lambda dim: FiLM(dim, (6, 5), features=4, frequencies=3, key=KEY),
    "gaussian": gaussian,
    "sum": lambda dim: SumPotential(gaussian(dim), MLP(dim, (4,), key=KEY)),
    "comoving": lambda dim: Comoving(
        MLP(dim, (4,), key=KEY),
        jnp.arange(3.0 * dim).reshape(3, dim),
        jnp.array([1.0, 2.0, 0.5]),
        jnp.stack([jnp.eye(dim)] * 3),
    ),
    "hopf_lax": hopf_lax,
    "hopf_lax_by_class": lambda dim: hopf_lax(dim, 2),
}


def make(network, dim=2, **changes):
    rng = np.random.default_rng(2)
    frame = Frame(rng.normal(size=dim), rng.normal(size=dim), np.asarray(1 / 3))
    fields = {
        "transport": CharacteristicTransport(network, frame, Quadratic()),
        "history": {"step": np.arange(3), "loss": np.asarray([np.nan, 0.1, -0.0])},
        "status": "completed",
        "message": "Stopped after 3 steps.",
        "scores": Metadata(energy_forward=1e-310, ratio=float("inf")),
        "info": Metadata(method={"name": "NCF", "widths": (4, 4)}, key=[0, 2**64 - 1], budget=None),
    }
    return Solution(**(fields | changes))


def flow(dim=2):
    network = NETWORKS["film"](dim)
    return make(network, transport=FlowTransport(network, Frame.identity(dim), Quadratic(), 0.3, 7))


def drifting():
    """Read back in the tests of drifts: a file leaves the function to the caller."""
    frame = Frame.identity(2)
    drift = FramedDrift(DriftFunction(lambda t, x: x), frame)
    still = flow()
    transport = dataclasses.replace(still.transport, drift=drift)
    return dataclasses.replace(still, transport=transport)


def maps():
    network, own = NETWORKS["mlp"](2), ResidualMap(2, (3,), key=KEY)
    transport = MapTransport(network, Frame.identity(2), Quadratic(), own, own)
    return make(network, transport=transport)


def images():
    u = ConvPotential((2, 1, 1), (2,), key=KEY)
    own = UNet((2, 1, 1), (2,), key=KEY)
    return make(u, transport=MapTransport(u, Frame.identity(2), Quadratic(), own, own))


COSTS = {
    type(cost).__name__: cost
    for cost in (
        Mahalanobis([[2.0, 0.3], [0.3, 0.5]]),
        Power(3),
        CoordinatewisePower(1.5),
        SquaredNorm(4),
        PseudoHuber(0.5),
        Relativistic(9.0),
        Cosh(),
        FramedCost(Cosh(), 3.0, 9.0),
    )
}


def with_cost(cost):
    network = MLP(2, (3,), key=KEY)
    return make(network, transport=CharacteristicTransport(network, Frame.identity(2), cost))


def small():
    return make(MLP(2, (3,), key=KEY))


def assert_same_bits(a, b):
    assert jax.tree.structure(a.transport) == jax.tree.structure(b.transport)
    for f in ("status", "message", "scores", "info"):
        # repr, because nan != nan and -0.0 == 0.0; it shows every bit of a float.
        assert type(getattr(a, f)) is type(getattr(b, f))
        assert repr(getattr(a, f)) == repr(getattr(b, f))
    assert list(a.history) == list(b.history)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(one, jax.Array) == isinstance(other, jax.Array)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "map.brenier", small())
    return tmp_path / "map.brenier"


class TestRoundTrip:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_bits(self, tmp_path, name):
        dim, dtype = [(1, np.float32), (3, np.float64)][list(NETWORKS).index(name) % 2]
        network = NETWORKS[name](dim)
        if name != "gaussian":
            network = jax.tree.map(lambda a: jnp.asarray(a, dtype), network)
        solution = make(network, dim)
        save(tmp_path / "a", solution)
        loaded = load(tmp_path / "a")
        assert_same_bits(loaded, solution)
        points = np.random.default_rng(3).normal(size=(5, dim))
        expected = solution.transport.forward(points)
        assert loaded.transport.forward(points).tobytes() == expected.tobytes()

    @pytest.mark.parametrize("build", [flow, maps, images])
    def test_other_transports(self, tmp_path, build):
        save(tmp_path / "a", build())
        loaded = load(tmp_path / "a")
        assert_same_bits(loaded, build())
        points = np.random.default_rng(3).normal(size=(5, 2))
        expected = build().transport.forward(points)
        assert loaded.transport.forward(points).tobytes() == expected.tobytes()

    @pytest.mark.parametrize("name", COSTS)
    def test_costs(self, tmp_path, name):
        save(tmp_path / "a", with_cost(COSTS[name]))
        assert_same_bits(load(tmp_path / "a"), with_cost(COSTS[name]))

    def test_covers_every_class(self):
        """A class added to the closed list needs a round trip above."""

        def classes(tree):
            found = {type(tree)} if eqx.is_array_like(tree) is False else set()
            if dataclasses.is_dataclass(tree):
                for field in dataclasses.fields(tree):
                    found |= classes(getattr(tree, field.name))
            if isinstance(tree, tuple):
                found = found.union(*map(classes, tree))
            return found

        solutions = [build() for build in (flow, drifting, maps, images)]
        solutions += [make(build(2)) for build in NETWORKS.values()]
        solutions += [with_cost(cost) for cost in COSTS.values()]
        seen = set().union(*map(classes, solutions))
        assert set(CLASSES.values()) <= seen

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_activations(self, tmp_path, activation):
        solution = make(MLP(2, (3,), activation=activation, key=KEY))
        save(tmp_path / "a", solution)
        assert_same_bits(load(tmp_path / "a"), solution)

    def test_plain_values(self, tmp_path):
        values = {
            "floats": [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0],
            "not finite": (float("inf"), -float("inf"), float("nan")),
            "ints": [0, -1, 10**30],
            "bools": (True, False, None),
            "text": 'ü \n "quoted" \u2028 \U0001f600',
            "nested": {"empty": {}, "list": [[], [()], [{"a": (1, [2.0])}]]},
            "array": "not a reference",
            "class": "os.system",
            "scalars": (np.float32(0.1), np.int8(3), np.bool_(True), np.float64(0.1)),
        }
        solution = make(MLP(2, (3,), key=KEY), info=Metadata(values))
        save(tmp_path / "a", solution)
        assert_same_bits(load(tmp_path / "a"), solution)

    def test_history_columns(self, tmp_path):
        history = {
            "empty": np.zeros((0, 3)),
            "scalar": np.asarray(0.1),
            "int": np.arange(5, dtype=np.int16),
            "a.b": np.ones(1),
            "strided": np.arange(10.0)[::-2],
            "__metadata__": np.ones(2, bool),
            "half": np.ones(3, np.float16),
        }
        solution = make(MLP(2, (3,), key=KEY), history=history)
        save(tmp_path / "a", solution)
        assert_same_bits(load(tmp_path / "a"), solution)

    def test_keys_that_spell_the_same_path(self, tmp_path):
        info = Metadata({"a.b": np.asarray(1.0), "a": {"b": np.asarray(2.0)}})
        solution = make(MLP(2, (3,), key=KEY), info=info)
        save(tmp_path / "a", solution)
        assert repr(load(tmp_path / "a").info) == repr(info)

    def test_again_and_again(self, path):
        before = path.read_bytes()
        save(str(path), load(str(path)))
        assert path.read_bytes() == before

    def test_loaded_solution_is_a_jit_argument(self, path):
        loaded = load(path)
        points = jnp.ones((4, 2))
        images = jax.jit(lambda solution, x: solution.transport.forward(x))(loaded, points)
        assert jnp.all(jnp.isfinite(images))
        hash(jax.tree.structure(loaded))

    def test_float64_without_x64(self, path):
        """jax cannot hold float64 then; numpy can, and the map is the same to single precision."""
        exact = load(path)
        with jax.enable_x64(False):
            with pytest.warns(BrenierWarning, match="rounded to float32.*JAX_ENABLE_X64"):
                rounded = load(path)
            images = rounded.transport.forward(np.ones((3, 2)))
        assert rounded.transport.network.head.dtype == np.float32
        assert rounded.transport.frame.scale.dtype == np.float64
        # A few roundings of 6e-8 in a network of depth 2.
        np.testing.assert_allclose(images, exact.transport.forward(np.ones((3, 2))), rtol=1e-5)

    def test_tensors_are_named_by_their_place(self, path):
        _, tensors = read_container(path, "solution")
        assert {"transport.network.weights.0", "transport.frame.scale", "history.loss"} <= set(
            tensors
        )


class Custom(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, x):
        return t * (self.matrix @ x) @ x


class TestRefusesToSave:
    @pytest.mark.parametrize(
        ("solution", "words"),
        [
            (lambda: make(Custom(jnp.eye(2))), r"transport\.network.*Custom"),
            (lambda: make(type("MLP", (Custom,), {})(jnp.eye(2))), r"transport\.network.*MLP"),
            (lambda: make(lambda t, x: t * (x @ x)), r"transport\.network.*function"),
            (lambda: make(NETWORKS["mlp"](2), info=Metadata(f=print)), r"info\.f.*builtin"),
            (lambda: make(NETWORKS["mlp"](2), info=Metadata(a={1: 2})), r"info\.a.*dict"),
            (lambda: make(NETWORKS["mlp"](2), history={"x": np.asarray(["a"])}), r"history\.x"),
            (lambda: make(NETWORKS["mlp"](2), status="excellent"), "parts"),
        ],
        ids=range(7),
    )
    def test_what_a_file_cannot_name(self, tmp_path, solution, words):
        with pytest.raises(InputError, match=words):
            save(tmp_path / "a", solution())
        assert not os.listdir(tmp_path)

    def test_no_folder(self, tmp_path):
        with pytest.raises(OutputError, match="does not exist"):
            save(tmp_path / "missing" / "a", small())

    def test_failure_keeps_the_old_map(self, path, monkeypatch):
        def fail(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OutputError, match="No space left"):
            save(path, make(ResNet(2, 4, 1, key=KEY)))
        assert os.listdir(path.parent) == [path.name]
        assert_same_bits(load(path), small())


class TestRefusesToLoad:
    def test_flipped_bytes(self, path):
        data = bytearray(path.read_bytes())
        rng = np.random.default_rng(0)
        for at in rng.integers(len(data), size=200):
            changed = data.copy()
            changed[at] ^= int(rng.integers(1, 256))
            path.write_bytes(changed)
            try:
                loaded = load(path)
            except FileFormatError:
                continue
            assert_same_bits(loaded, small())

    def test_cut_short(self, path):
        data = path.read_bytes()
        for length in range(0, len(data), len(data) // 50):
            path.write_bytes(data[:length])
            with pytest.raises(FileFormatError):
                load(path)

    def test_a_checkpoint(self, path):
        write_container(path, "checkpoint", {}, {})
        with pytest.raises(FileFormatError, match="is a checkpoint"):
            load(path)

    def test_a_pickle_is_never_opened(self, path, monkeypatch):
        def fail(*args, **kwargs):
            raise AssertionError("unpickled")

        for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
            monkeypatch.setattr(pickle, name, fail)
        save(path, small())
        assert_same_bits(load(path), small())

        class Bomb:
            def __reduce__(self):
                return (os.mkdir, (str(path.parent / "bomb"),))

        monkeypatch.undo()
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(FileFormatError):
            load(path)
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.parametrize("name", ["os.system", "builtins.eval", "Metadata", "", "Custom"])
    def test_class_that_is_not_on_the_list(self, path, name):
        forge(path, lambda tree: tree["fields"]["transport"].update({"class": name}))
        with pytest.raises(FileFormatError, match=f"names the class '{name}'"):
            load(path)

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("transport.network.weights", {"tuple": []}),
            ("transport.network.weights", [1.0]),
            ("transport.network.weights", {"tuple": ["text"]}),
            ("transport.network.head", {"array": "transport.frame.scale", "as": "jax"}),
            ("transport.network.head", {"array": "missing", "as": "jax"}),
            ("transport.network.head", {"array": "transport.network.head", "as": "torch"}),
            ("transport.network.head", {"array": ["x"], "as": "jax"}),
            ("transport.network.head", None),
            ("transport.network.activation", "os.system"),
            ("transport.network.activation", 3),
            ("transport.network.sharpness", "ten"),
            ("transport.network.sharpness", [10.0]),
            ("transport.network.extra", 1.0),
            ("transport.network", None),
            ("transport.network", {"class": "Solution", "fields": {}}),
            ("transport.network", {"class": "MLP"}),
            ("transport.network", {"class": ["MLP"], "fields": {}}),
            ("transport.frame", {"class": "Quadratic", "fields": {}}),
            ("transport.frame.source_center", {"array": "transport.frame.scale", "as": "numpy"}),
            ("transport.frame.scale", {"array": "transport.network.head", "as": "numpy"}),
            ("transport.frame.scale", "1"),
            ("transport.cost", {"float": "nan"}),
            ("transport.cost", {"float": "x"}),
            ("transport", {"dict": {}}),
            ("history", {"dict": {"loss": [1.0]}}),
            ("history", {"unknown": {}}),
            ("history", []),
            ("status", "excellent"),
            ("message", None),
            ("scores", {"dict": {}}),
            ("info", {}),
        ],
    )
    def test_forged_tree(self, path, place, value):
        *parents, last = place.split(".")

        def change(tree):
            for name in parents:
                tree = tree["fields"][name]
            tree["fields"][last] = value

        forge(path, change)
        with pytest.raises(FileFormatError, match="does not describe a map"):
            load(path)

    @pytest.mark.parametrize("name", ["transport", "history", "status", "info"])
    def test_missing_field(self, path, name):
        forge(path, lambda tree: tree["fields"].pop(name))
        with pytest.raises(FileFormatError, match="gives Solution the fields"):
            load(path)

    @pytest.mark.parametrize("tree", [None, 1, "x", [], {"tuple": []}, {"dict": {}}])
    def test_something_else_entirely(self, path, tree):
        write_container(path, "solution", tree, {})
        with pytest.raises(FileFormatError, match="does not describe a map"):
            load(path)

    def test_deep_nesting(self, path):
        tree: list = []
        for _ in range(500):
            tree = [tree]
        forge(path, lambda root: root["fields"].update(message=tree))
        with pytest.raises(FileFormatError):
            load(path)

    def test_arrays_may_have_any_name(self, path):
        expected = load(path)
        tree, tensors = read_container(path, "solution")
        tensors["elsewhere"] = tensors.pop("transport.network.head")
        text = json.dumps(tree).replace('"transport.network.head"', '"elsewhere"')
        write_container(path, "solution", json.loads(text), tensors)
        head = load(path).transport.network.head
        np.testing.assert_array_equal(head, expected.transport.network.head)

    def test_numbers_that_are_not_finite(self, path):
        tree, tensors = read_container(path, "solution")
        tensors["transport.network.head"] = np.full_like(tensors["transport.network.head"], np.nan)
        write_container(path, "solution", tree, tensors)
        with pytest.raises(FileFormatError, match="Not all numbers of its maps are finite"):
            load(path)


def forge(path, change):
    """Rewrite a file with a changed tree and the right checksum, as only a person would."""
    tree, tensors = read_container(path, "solution")
    change(tree)
    write_container(path, "solution", tree, tensors)
