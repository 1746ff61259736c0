"""LightconeArray: an index like numpy's, reading in order, processes, scikit-learn."""

import multiprocessing
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    ShuffleSplit,
    cross_val_predict,
    cross_validate,
    learning_curve,
    train_test_split,
)
from sklearn.pipeline import Pipeline

from skatr_sk import (
    LightconeArray,
    LightconeRegressor,
    SKATRTransformer,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.fields import Fields, digest, digest_rows
from skatr_sk.summaries import JEPA
from tests.lightcones import layouts
from tests.lightcones.layouts import FIELD, N


def test_attributes(X, values):
    assert X.shape == values.shape and X.ndim == 4 and len(X) == N
    assert X.dtype == values.dtype and X.nbytes == values.nbytes and X.size == values.size
    assert repr(X) == "LightconeArray(shape=(12, 4, 4, 10), dtype=float32, 3 files)"
    assert [path[-4:] for path in X[6:].files] == ["b.h5", "c.npy"[-4:]]


KEYS = {
    "slice": slice(2, 11),
    "steps": slice(None, None, -3),
    "list": [11, 0, 5, 4, 5],
    "negative": np.array([-1, 3, -12]),
    "mask": np.arange(N) % 3 == 0,
    "empty": [],
    "nothing": np.zeros(N, dtype=bool),
    "ellipsis": Ellipsis,
    "tuple": (slice(1, 4), slice(None), Ellipsis),
    "list in a tuple": ([3, 1], Ellipsis),
    "full": (),
}


@pytest.mark.parametrize("name", KEYS)
def test_views(X, values, name, reads):
    view = X[KEYS[name]]
    expected = values[np.array(KEYS[name], dtype=int) if name == "empty" else KEYS[name]]
    assert isinstance(view, LightconeArray) and not reads
    assert view.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(view), expected)
    # A view of a view.
    np.testing.assert_array_equal(np.asarray(view[::-1][:2]), expected[::-1][:2])


def test_cones(X, values):
    for row in (0, 8, -1, np.int64(7)):
        assert type(X[row]) is np.ndarray
        np.testing.assert_array_equal(X[row], values[row])
    np.testing.assert_array_equal(X[3, 1, ..., 2:5], values[3, 1, ..., 2:5])
    np.testing.assert_array_equal(np.stack(list(X)), values)
    assert np.asarray(X, dtype=np.float64).dtype == np.float64
    assert float(np.mean(X)) == pytest.approx(values.mean(), rel=1e-5)


@pytest.mark.parametrize("key", [12, -13, [0, 12], np.zeros(3, bool), 1.5, [[1, 2]], ["a"]])
def test_wrong_keys(X, key):
    with pytest.raises(IndexError):
        X[key]


PARTS = {
    "near": (Ellipsis, slice(None, 4)),
    "sky": (slice(None), slice(1, 3), slice(-2, None)),
    "steps": ([7, 2, 7], Ellipsis, slice(1, None, 2)),
    "beyond the end": (slice(3, 9, 2), slice(0, 99), Ellipsis, slice(2, 99)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_cones_are_read_when_they_are_asked_for(X, values, name, reads):
    part = X[PARTS[name]]
    expected = values[PARTS[name]]
    assert isinstance(part, Fields) and not part.in_memory and not reads
    assert part.shape == expected.shape and part.dtype == expected.dtype
    np.testing.assert_array_equal(part.read(), expected)
    np.testing.assert_array_equal(np.asarray(part), expected)
    np.testing.assert_array_equal(np.asarray(part[::-1, ..., 1:]), expected[::-1, ..., 1:])
    assert part.digests() == digest_rows(expected)
    assert part[1:].digests() == digest_rows(expected[1:])
    assert len(pickle.dumps(part)) < len(pickle.dumps(X)) + 2000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).read([1]), expected[[1]])


def test_rows_are_read_in_the_order_of_the_files(X, values, reads):
    asked = [8, 0, 4, 6, 3, 5, 0]
    np.testing.assert_array_equal(X.read(asked), values[asked])
    positions = [(name, row) for name, row, _ in reads]
    assert positions == sorted(positions)
    reads.clear()
    X.read(np.arange(9))
    assert reads == [("a.h5", 0, 5), ("b.h5", 0, 4)]  # neighbours at one go


def test_random_rows_of_random_views(X, values):
    rng = np.random.default_rng(1)
    for _ in range(50):
        first = rng.integers(0, N, size=rng.integers(1, 20))
        second = rng.integers(0, len(first), size=rng.integers(0, 9))
        np.testing.assert_array_equal(X[first].read(second), values[first][second])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same light cones in a file and in memory."""
    path = tmp_path_factory.mktemp("stored") / "a.h5"
    save_lightcones(path, layouts.values())
    return open_lightcones(path).data, layouts.values()


# Indices that numpy takes along the first axis of N rows.
INDICES = st.one_of(
    st.slices(N),
    st.lists(st.integers(-N, N - 1), min_size=1, max_size=2 * N),
    st.lists(st.booleans(), min_size=N, max_size=N).map(np.array),
)


@settings(max_examples=25, deadline=None)
@given(first=INDICES, second=st.lists(st.integers(0, N - 1), max_size=N))
def test_an_index_is_that_of_numpy(stored, first, second):
    X, values = stored
    view, expected = X[first], values[first]
    assert view.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(view), expected)
    rows = [row for row in second if row < len(expected)]
    np.testing.assert_array_equal(view.read(rows), expected[np.array(rows, dtype=int)])
    assert view.digests(rows) == [digest(expected[row]) for row in rows]
    assert [view.origin(row)[1] for row in rows] == np.arange(N)[first][rows].tolist()


def test_its_face_is_that_of_an_array(X):
    assert isinstance(X, Fields) and not X.in_memory
    public = {name for name in dir(X) if not name.startswith("_")}
    array = {"shape", "dtype", "ndim", "size", "nbytes"}
    assert public == array | {
        "read",
        "digests",
        "in_memory",
        "grid",
        "files",
        "origin",
        "concatenate",
    }


def test_concatenation(X, values, tmp_path):
    np.save(tmp_path / "d.npy", values[:2].astype(np.float64))
    other = open_lightcones(tmp_path / "d.npy").data
    joined = LightconeArray.concatenate([X[8:2:-1], other, X[:1]])
    assert joined.dtype == np.float64
    expected = np.concatenate([values[8:2:-1], values[:2], values[:1]])
    np.testing.assert_array_equal(np.asarray(joined), expected)
    assert joined.digests() == [digest(row) for row in expected]
    np.save(tmp_path / "e.npy", values[:, :2])
    with pytest.raises(ValueError, match="several shapes"):
        LightconeArray.concatenate([X, open_lightcones(tmp_path / "e.npy").data])


def _sum(X):
    return float(np.asarray(X, dtype=np.float64).sum())


def test_pickles_are_paths(X, values):
    np.asarray(X)  # files are open now
    data = pickle.dumps(X[[3, 9]])
    assert len(data) < 4000
    np.testing.assert_array_equal(np.asarray(pickle.loads(data)), values[[3, 9]])


def _send(X, pipe):
    pipe.send(_sum(X))


def test_a_fork_opens_files_for_itself(X, values):
    np.asarray(X)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_send, args=(X[1:], there))
    child.start()
    assert here.poll(60)
    assert here.recv() == pytest.approx(values[1:].sum(dtype=np.float64))
    child.join()
    np.testing.assert_array_equal(np.asarray(X), values)  # and this one goes on with its own


def test_threads_read_at_once(X, values):
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            rows = rng.integers(0, N, size=4)
            if not np.array_equal(X.read(rows), values[rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Labelled cones in files and in memory, and the weights of an encoder."""
    folder = tmp_path_factory.mktemp("problem")
    rng = np.random.default_rng(3)
    y = rng.uniform(0, 1, (24, 2))
    values = (60 * y[:, :1, None, None] + rng.normal(-20, 30, (24, *FIELD))).astype(np.float32)
    save_lightcones(folder / "cones.h5", values, y, seeds=np.arange(24) // 3)
    encoder = SKATRTransformer(
        embed_dim=16,
        depth=1,
        n_heads=2,
        objective=JEPA(predictor_depth=1),
        max_epochs=0,
        random_state=0,
    ).fit(values)
    encoder.save(folder / "weights.safetensors")
    return open_lightcones(folder / "cones.h5"), values, str(folder / "weights.safetensors")


def pipeline(weights):
    head = LightconeRegressor(hidden_dims=(8,), max_epochs=2, random_state=0)
    return Pipeline([("skatr", SKATRTransformer(weights=weights)), ("head", head)])


def test_train_test_split(problem):
    cones, values, _ = problem
    found = train_test_split(cones.data, cones.target, random_state=0)
    expected = train_test_split(values, cones.target, random_state=0)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), theirs)
    assert isinstance(found[0], LightconeArray)


def everything(pipe, X, y, groups, n_jobs):
    """What scikit-learn makes of rows: folds by group, a search, a curve, predictions."""
    shuffled = ShuffleSplit(2, test_size=0.25, random_state=0)
    options = dict(n_jobs=n_jobs, error_score="raise")
    folds = cross_validate(pipe, X, y, cv=GroupKFold(3), groups=groups, **options)
    candidates = {"head__learning_rate": [1e-3, 1e-2]}
    search = GridSearchCV(pipe, candidates, cv=shuffled, **options).fit(X, y)
    _, train, test = learning_curve(pipe, X, y, train_sizes=[6, 12], cv=shuffled, **options)
    predicted = cross_val_predict(pipe, X, y, cv=3, n_jobs=n_jobs)
    return [folds["test_score"], search.cv_results_["mean_test_score"], train, test, predicted]


@pytest.fixture(scope="module")
def from_memory(problem):
    cones, values, weights = problem
    return everything(pipeline(weights), values, cones.target, cones.seeds, n_jobs=1)


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_cross_validation_and_searches(problem, from_memory, n_jobs):
    """Everything gives what it gives for the array in memory."""
    cones, _, weights = problem
    found = everything(pipeline(weights), cones.data, cones.target, cones.seeds, n_jobs)
    for ours, theirs in zip(found, from_memory, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def small(**changed):
    parameters = dict(
        embed_dim=16,
        depth=1,
        n_heads=2,
        objective="lejepa",  # which trains the soonest
        max_epochs=2,
        batch_size=4,
        validation_fraction=0.25,
        random_state=0,
    )
    return SKATRTransformer(**(parameters | changed))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_pretraining_from_files_is_that_from_memory(problem, n_workers):
    cones, values, _ = problem
    here = small().fit(values)
    there = small(n_workers=n_workers).fit(cones.data)
    assert there.scaling_ == here.scaling_
    assert [r["train_loss"] for r in there.history_] == [r["train_loss"] for r in here.history_]
    assert [r["valid_loss"] for r in there.history_] == [r["valid_loss"] for r in here.history_]
    np.testing.assert_array_equal(there.transform(cones.data[::-1]), here.transform(values[::-1]))


def test_checkpoints_are_shared_by_files_and_memory(problem, tmp_path):
    cones, values, _ = problem
    small(checkpoint_dir=tmp_path).fit(values)
    (before,) = tmp_path.iterdir()
    small(checkpoint_dir=tmp_path, n_workers=1).fit(cones.data)
    assert [before] == list(tmp_path.iterdir())


def test_what_is_not_finite_is_refused_when_it_is_read(tmp_path, values):
    values[7, 1, 1, 1] = np.nan
    save_lightcones(tmp_path / "a.h5", values)
    X = open_lightcones(tmp_path / "a.h5", validate=False).data
    assert np.isnan(np.asarray(X)).sum() == 1  # whoever looks at the data may see it
    with pytest.raises(ValueError, match=r"NaN or infinite cells in row 5: .*a\.h5, row 7"):
        small(max_epochs=1).fit(X[2:])
    fitted = small(max_epochs=0).fit(X[:6])
    with pytest.raises(ValueError, match=r"row 1: .*a\.h5, row 7"):
        fitted.transform(X[6:8])
    assert fitted.transform(X[8:]).shape == (4, 48)


def test_shapes_are_checked_without_reading(problem, reads):
    cones, *_ = problem
    fitted = small(max_epochs=0).fit(np.zeros((4, 4, 4, 20)) + np.arange(20))
    with pytest.raises(ValueError, match=r"fitted, found \(4, 4, 10\)"):
        fitted.transform(cones.data)
    with pytest.raises(ValueError, match="at least 2"):
        small().fit(cones.data[:1])
    assert not reads
    assert clone(fitted).fit(cones.data).field_shape_in_ == FIELD


def test_two_dimensional_fields_in_files(tmp_path):
    signals = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    save_lightcones(tmp_path / "a.h5", signals)
    X = open_lightcones(tmp_path / "a.h5").data
    fitted = small(max_epochs=1).fit(X)
    assert fitted.n_features_in_ == 16
    np.testing.assert_allclose(fitted.transform(X), fitted.transform(signals))
    with pytest.raises(ValueError, match="expecting 16 features"):
        save_lightcones(tmp_path / "b.h5", signals[:, :8])
        fitted.transform(open_lightcones(tmp_path / "b.h5").data)


@pytest.mark.parametrize("n_workers", [-1, 1.5, "all"])
def test_wrong_workers(n_workers, values):
    with pytest.raises(ValueError, match="n_workers: expected an integer >= 0"):
        small(n_workers=n_workers).fit(values)
