"""Encoding: in searches and curves over a Pipeline the encoder sees each light cone once."""

import os
import shutil
import signal

import h5py
import numpy as np
import pytest
import torch
from joblib import parallel_config
from scipy.stats import loguniform
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
)
from sklearn.pipeline import Pipeline

from skatr_sk import (
    LightconeRegressor,
    SKATRTransformer,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk._checks import UnitsWarning
from skatr_sk.fields import digest_rows
from skatr_sk.summaries import BrightnessScaling, cache_info, clear_cache
from tests.counting import CountFields, KillOnce, count_reads

N = 24
GRID = {"head__hidden_dims": [(), (8,)]}
FOLDS = KFold(3, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def cones():
    bunch = load_lightcones()
    rows = np.arange(0, 9 * N, 9)
    return bunch.data[rows].astype(np.float32), bunch.target[rows]


@pytest.fixture(scope="module")
def in_files(cones, tmp_path_factory):
    """The same light cones and parameters, left in a file."""
    path = tmp_path_factory.mktemp("cones") / "cones.h5"
    save_lightcones(path, *cones)
    opened = open_lightcones(path)
    return opened.data, opened.target


@pytest.fixture(scope="module")
def weights(cones, tmp_path_factory):
    """A file of weights: those of the random initialisation will do."""
    path = tmp_path_factory.mktemp("weights") / "skatr.safetensors"
    skatr = SKATRTransformer(
        patch_size=(2, 2, 45), embed_dim=12, depth=1, n_heads=2, max_epochs=0, device="cpu",
        random_state=0,
    )  # fmt: skip
    skatr.fit(cones[0]).save(path)
    return path


@pytest.fixture(autouse=True)
def nothing_cached():
    clear_cache()
    yield
    clear_cache()


def head():
    return LightconeRegressor(hidden_dims=(8,), max_epochs=2, device="cpu", random_state=0)


def from_weights(weights, cache):
    skatr = SKATRTransformer(weights=weights, cache=cache, device="cpu")
    return Pipeline([("skatr", skatr), ("head", head())])


def counted(weights, cache, tmp_path):
    """A pipeline over a fitted transformer, and the count of what its encoder sees."""
    skatr = SKATRTransformer.load(weights, cache=cache, device="cpu")
    counter = CountFields(tmp_path / "seen.txt")
    skatr.encoder_.register_forward_hook(counter)
    return Pipeline([("skatr", FrozenEstimator(skatr)), ("head", head())]), counter


def search(pipe, X, y, n_jobs=1):
    return GridSearchCV(pipe, GRID, cv=FOLDS, n_jobs=n_jobs, error_score="raise").fit(X, y)


@pytest.fixture(scope="module")
def expected(cones, weights):
    """The scores of a search over the bare head, on summaries that were computed beforehand."""
    X, y = cones
    summaries = SKATRTransformer.load(weights, cache=None, device="cpu").transform(X)
    bare = Pipeline([("head", head())])
    return search(bare, summaries, y).cv_results_["mean_test_score"]


@pytest.mark.parametrize(
    ("cache", "kept"),
    [
        pytest.param("memory", "in memory", marks=pytest.mark.slow),
        pytest.param("memory", "in files", marks=pytest.mark.slow),
        pytest.param("folder", "in memory", marks=pytest.mark.slow),
        ("folder", "in files"),
    ],
)
def test_a_search_sees_each_cone_once(cache, kept, cones, in_files, weights, tmp_path, expected):
    cones = cones if kept == "in memory" else in_files
    cache = cache if cache == "memory" else tmp_path / "cache"
    pipe, counter = counted(weights, cache, tmp_path)
    found = search(pipe, *cones)
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], expected, atol=1e-4)
    assert counter.total() == N == cache_info().misses
    assert found.predict(cones[0][:5]).shape == (5, 6)
    # The weights from their file are the same weights.
    again = search(from_weights(weights, cache), *cones)
    np.testing.assert_array_equal(
        again.cv_results_["mean_test_score"], found.cv_results_["mean_test_score"]
    )
    assert cache_info().misses == N


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["in memory", "in files"])
def test_two_processes_see_each_cone_once(kept, cones, in_files, weights, tmp_path, expected):
    cones = cones if kept == "in memory" else in_files
    folder = tmp_path / "cache"
    pipe, counter = counted(weights, folder, tmp_path)
    found = search(pipe, *cones, n_jobs=2)
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], expected, atol=1e-2)
    assert counter.total() == N == cache_info(folder).n_entries
    assert cache_info().misses == 0  # all in the workers; the refit here has found them
    again = search(from_weights(weights, folder), *cones, n_jobs=2)
    np.testing.assert_allclose(again.cv_results_["mean_test_score"], expected, atol=1e-2)
    assert cache_info(folder).n_entries == N


def test_threads_share_what_is_in_memory(cones, weights, expected):
    """Frozen by `weights=`, as the documentation advises for joblib's threads."""
    with parallel_config(backend="threading"):
        found = search(from_weights(weights, "memory"), *cones, n_jobs=2)
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], expected, atol=1e-2)
    assert cache_info().misses == N


@pytest.mark.parametrize("kept", [pytest.param("in memory", marks=pytest.mark.slow), "in files"])
def test_every_tool_finds_what_the_first_computed(kept, cones, in_files, weights, tmp_path):
    X, y = cones if kept == "in memory" else in_files
    pipe, counter = counted(weights, "memory", tmp_path)
    sizes, train_scores, _ = learning_curve(
        pipe, X, y, train_sizes=[0.2, 0.5, 1.0], cv=FOLDS, error_score="raise"
    )
    assert sizes.tolist() == [3, 8, 16]
    assert np.isfinite(train_scores).all()
    assert counter.total() == N
    options = {"cv": FOLDS, "error_score": "raise"}
    scores = cross_validate(pipe, X, y, **options)["test_score"]
    assert np.isfinite(scores).all()
    assert cross_val_predict(pipe, X, y, cv=FOLDS).shape == (N, 6)
    drawn = {"head__learning_rate": loguniform(1e-4, 1e-2), "head__dropout": [0.0, 0.1]}
    randomized = RandomizedSearchCV(pipe, drawn, n_iter=2, random_state=0, **options).fit(X, y)
    assert 1e-4 < randomized.best_params_["head__learning_rate"] < 1e-2
    halving = HalvingGridSearchCV(
        pipe, {"head__learning_rate": [1e-2, 1e-3, 1e-4]}, min_resources=8, random_state=0, cv=2,
        error_score="raise",
    ).fit(X, y)  # fmt: skip
    assert halving.n_resources_ == [8, 24]
    assert counter.total() == N


def test_in_memory_or_in_files_it_is_the_same_light_cone(cones, in_files, weights, tmp_path):
    pipe, counter = counted(weights, tmp_path / "cache", tmp_path)
    pipe.fit(*cones)
    assert counter.total() == N
    # What needs no summary is not read either: the file might as well be gone.
    read = []
    files = in_files[0]
    original = type(files).read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(files), "read", lambda self, *a: read.append(a) or original(self, *a))
        np.testing.assert_array_equal(pipe.predict(files), pipe.predict(cones[0]))
    assert counter.total() == N
    assert read == []


@pytest.mark.parametrize(("cache", "n_processes"), [("folder", 1), ("memory", 3)])
def test_files_without_an_index_are_not_read_in_every_task(
    cache, n_processes, cones, weights, tmp_path
):
    """Once for their digests and once to summarise them, whatever the number of tasks."""
    for k, (cone, label) in enumerate(zip(*cones, strict=True)):
        np.savez(tmp_path / f"run{k:02d}.npz", image=cone, label=label)
    opened = open_lightcones(tmp_path)
    log = tmp_path / "reads.txt"
    X = count_reads(opened.data, log)
    pipe = from_weights(weights, tmp_path / "cache" if cache == "folder" else "memory")
    pipe.set_params(head=Ridge())  # nothing is trained in a fork
    with parallel_config(backend="multiprocessing"):  # these need not import torch anew
        GridSearchCV(pipe, {"head__alpha": [1, 2, 3, 4]}, cv=FOLDS, n_jobs=2).fit(X, opened.target)
    readers = log.read_text().split()
    assert len(readers) <= 2 * N * n_processes
    assert max(readers.count(pid) for pid in set(readers)) <= 2 * N
    if cache == "folder":
        assert len(readers) == 2 * N
        assert cache_info(tmp_path / "cache").n_entries == N  # digests are none
        # Opened anew they are the same files.
        log.write_text("")
        pipe.fit(X, opened.target).predict(count_reads(open_lightcones(tmp_path).data, log))
        assert log.read_text() == ""
        clear_cache(tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture
def own_file(cones, tmp_path):
    """A file of the light cones that a test may write to."""
    save_lightcones(tmp_path / "cones.h5", cones[0])
    return tmp_path / "cones.h5"


def halve(path, row, keep_time=False):
    """Change a row in place, as h5py does it for anybody."""
    before = path.stat()
    with h5py.File(path, "r+") as file:
        file["brightness_temp"][row] = file["brightness_temp"][row] / 2
    if keep_time:
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("row", [0, 7, 23])
@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_a_row_changed_in_its_file_gets_no_old_summary(cache, row, own_file, weights, tmp_path):
    """The index is still there, and all that is asked for is in the cache."""
    cache = cache if cache == "memory" else tmp_path / "cache"
    skatr = SKATRTransformer.load(weights, cache=cache, device="cpu")
    skatr.transform(open_lightcones(own_file).data)
    halve(own_file, row)
    if row in (0, N - 1):  # the quick check reads the ends
        with pytest.raises(ValueError, match=f"digest: the values of row {row} are not those"):
            open_lightcones(own_file)
        return
    changed = open_lightcones(own_file).data
    with pytest.raises(ValueError, match=rf"cones.h5, row {row}: its values do not have the diges"):
        skatr.transform(changed)
    others = np.delete(np.arange(N), row)
    before = cache_info().misses
    assert np.isfinite(skatr.transform(changed[others])).all()
    assert cache_info().misses == before


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_no_summary_is_kept_for_other_values(cache, cones, own_file, weights, tmp_path):
    """Even where a file looks untouched: what is read is held to its digest."""
    cache = cache if cache == "memory" else tmp_path / "cache"
    halve(own_file, 7, keep_time=True)
    skatr = SKATRTransformer.load(weights, cache=cache, device="cpu")
    with pytest.raises(ValueError, match=r"row 7: its values do not have the digest .* write it a"):
        skatr.transform(open_lightcones(own_file).data)
    expected = SKATRTransformer.load(weights, cache=None, device="cpu").transform(cones[0])
    np.testing.assert_allclose(skatr.transform(cones[0]), expected, rtol=1e-5, atol=1e-6)


def unknown(X):
    """Of how many light cones the values have to be read to know their digests."""
    asked = []

    def recall(identities, compute):
        asked.extend(identities)
        return compute(np.arange(len(identities)))

    X.digests(recall=recall)
    return len(asked)


def test_an_index_is_believed_while_the_file_is_as_it_was_written(own_file, weights, tmp_path):
    skatr = SKATRTransformer.load(weights, device="cpu")
    skatr.transform(open_lightcones(own_file).data)
    shutil.copy2(own_file, tmp_path / "same time.h5")
    shutil.copyfile(own_file, tmp_path / "new time.h5")
    with h5py.File(own_file, "r+") as file:
        file.attrs["note"] = "nothing else has changed"
    for path, believed in [
        (own_file, False), (tmp_path / "same time.h5", True), (tmp_path / "new time.h5", False)
    ]:  # fmt: skip
        X = open_lightcones(path).data
        assert (unknown(X) == 0) == believed
        skatr.transform(X)
    assert cache_info().misses == N


def test_where_no_times_can_be_set_the_values_are_digested(cones, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        save_lightcones(tmp_path / "cones.h5", cones[0])
    X = open_lightcones(tmp_path / "cones.h5").data
    assert unknown(X) > 0
    assert X.digests() == digest_rows(cones[0])


def test_a_cone_that_cannot_be_used_costs_no_other(cones, weights, tmp_path):
    X, _ = cones
    broken = np.concatenate([X, X[:1]])
    broken[-1, 3, 4, 5] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    files = open_lightcones(tmp_path / "broken.npy", validate=False).data
    skatr = SKATRTransformer.load(weights, cache=tmp_path / "cache", device="cpu")
    with pytest.raises(ValueError, match="broken.npy, row 24"):
        skatr.transform(files)
    expected = SKATRTransformer.load(weights, cache=None, device="cpu").transform(X)
    np.testing.assert_allclose(skatr.transform(files[:N]), expected, rtol=1e-5, atol=1e-6)


def test_without_a_cache_everything_is_computed_again(cones, weights, tmp_path):
    pipe, counter = counted(weights, None, tmp_path)
    cross_validate(pipe, *cones, cv=FOLDS, error_score="raise")
    assert counter.total() == 3 * N  # each fold trains on two thirds and tests on one
    assert cache_info()[:3] == (0, 0, 0)


@pytest.mark.parametrize("wrong", [3, "", True, "a file"])
def test_a_wrong_cache_is_refused(wrong, cones, tmp_path):
    if wrong == "a file":
        (tmp_path / "file").touch()
        wrong = tmp_path / "file"
    with pytest.raises(ValueError, match="- cache: expected 'memory', the path of a folder, or No"):
        SKATRTransformer(cache=wrong).fit(cones[0])


def test_what_the_key_is_made_of(cones, weights):
    """What changes the summaries is another entry; what does not finds them."""

    def misses(X, **parameters):
        before = cache_info().misses
        SKATRTransformer.load(weights, device="cpu", **parameters).transform(X)
        return cache_info().misses - before

    X = cones[0][:4]
    assert misses(X) == 4
    assert misses(X.astype(np.float64), batch_size=1, verbose=1, precision="float32") == 0
    assert misses(np.asfortranarray(X[::-1])) == 0
    assert misses(X, pooling="max") == misses(X, pooling="tokens") == 4
    assert misses(X, precision="bf16") == 4
    changed = X.copy()
    changed[2, 0, 0, 0] += 1e-3
    assert misses(changed) == 1
    assert misses(X, cache=None) == 0  # nor is it counted


def test_changed_weights_are_other_weights(cones, weights):
    X = cones[0][:4]
    skatr = SKATRTransformer.load(weights, device="cpu")
    before = skatr.transform(X)
    with torch.no_grad():
        next(skatr.encoder_.parameters()).mul_(1.5)
    after = skatr.transform(X)
    assert cache_info().misses == 8
    assert (after != before).any(axis=1).all()
    skatr.scaling_ = BrightnessScaling.from_range(-120, -1)
    assert (skatr.transform(X) != after).any(axis=1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_killed_in_mid_search(cones, weights, tmp_path, expected):
    folder = tmp_path / "cache"
    pipe, counter = counted(weights, folder, tmp_path)
    flag = tmp_path / "kill"
    pipe["skatr"].estimator.encoder_.register_forward_hook(KillOnce(flag))
    child = os.fork()
    if not child:
        try:
            search(pipe, *cones)
        finally:  # it is killed before
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not flag.exists()
    written = cache_info(folder).n_entries
    lost = counter.total() - written  # the batch in which it died
    assert 0 < lost <= N
    # The search again, here, goes on from what is there, and is right.
    found = search(pipe, *cones)
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], expected, atol=1e-4)
    assert cache_info().misses == N - written
    assert cache_info(folder).n_entries == N
    assert counter.total() == N + lost


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["in memory", "in files"])
def test_a_dask_cluster_sees_each_cone_once(kept, cones, in_files, weights, tmp_path, expected):
    cones = cones if kept == "in memory" else in_files
    distributed = pytest.importorskip("distributed")
    folder = tmp_path / "cache"
    pipe, counter = counted(weights, folder, tmp_path)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
        local_directory=tmp_path / "dask",
    )  # fmt: skip
    with cluster, distributed.Client(cluster), parallel_config(backend="dask"):
        found = search(pipe, *cones, n_jobs=-1)
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], expected, atol=1e-2)
    assert counter.total() == N == cache_info(folder).n_entries
    assert os.getpid() not in counter.processes()


@pytest.mark.parametrize("cache", [None, "memory"])
def test_summaries_that_are_not_finite_name_their_rows(cache):
    X = np.random.default_rng(0).normal(size=(6, 8, 6)).astype(np.float32)
    sizes = dict(patch_size=2, embed_dim=8, depth=1, max_epochs=0, random_state=0, cache=cache)
    skatr = SKATRTransformer(**sizes, brightness_range=(0.0, 1e-10)).fit(X)
    assert np.isfinite(skatr.transform(X)).all()
    X[[1, 4]] = 1e35  # finite, but not divided by 1e-10
    for _ in range(2):  # what is kept is no better
        with pytest.raises(ValueError, match="X: expected finite summaries .* 2 of 6 rows.* 1, 4"):
            skatr.transform(X)


def test_files_in_kelvin_are_looked_at_in_transform(cones, tmp_path):
    """As in `fit`, at what is read first; what is given in the file is not in doubt."""
    X = cones[0][:4]
    skatr = SKATRTransformer(weights="mini-lr", precision="float32", cache=None).fit(X)
    wanted = skatr.transform(X)
    np.save(tmp_path / "kelvin.npy", X / 1000)
    for transform in (skatr.transform, SKATRTransformer(weights="mini-lr").fit_transform):
        with pytest.warns(UnitsWarning, match="is it in kelvin"):
            transform(open_lightcones(tmp_path / "kelvin.npy").data)
    found = skatr.transform(open_lightcones(tmp_path / "kelvin.npy", units="K").data)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    head = LightconeRegressor(backbone=skatr, max_epochs=0, random_state=0)
    head.fit(X, np.arange(4.0))
    with pytest.warns(UnitsWarning, match="is it in kelvin"):
        head.predict(open_lightcones(tmp_path / "kelvin.npy").data)
