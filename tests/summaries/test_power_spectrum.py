"""Power spectra, against fields whose spectrum is known, and by hand."""

import numpy as np
import pytest
import torch

from skatr_sk import AssumedGridWarning, NoEffectWarning, PowerSpectrumTransformer, load_lightcones
from skatr_sk.fields import ArrayFields
from skatr_sk.grid import Grid

SIZES = (2.0, 3.0, 5.0)  # Mpc
SHAPE = (12, 10, 16)


def spectra(X, **parameters):
    return PowerSpectrumTransformer(**dict(cell_size=SIZES) | parameters).fit(X)


def wave_numbers(shape=SHAPE, sizes=SIZES):
    each = [2 * np.pi * np.fft.fftfreq(n, d) for n, d in zip(shape, sizes, strict=True)]
    return np.meshgrid(*each, indexing="ij")


def drawn(n, power, rng):
    """Gaussian fields whose P(k_perp, k_par) is a function, in mK^2 Mpc^3."""
    k_x, k_y, k_z = wave_numbers()
    wanted = power(np.hypot(k_x, k_y), np.abs(k_z))
    modes = np.fft.fftn(rng.standard_normal((n, *SHAPE)), axes=(1, 2, 3))
    scale = np.sqrt(wanted / np.prod(SIZES))  # white noise has a P of the volume of a cell
    return np.fft.ifftn(modes * scale, axes=(1, 2, 3)).real


@pytest.mark.parametrize("spectrum", ["cylindrical", "spherical"])
def test_a_known_spectrum_is_found(spectrum, rng):
    def power(k_perp, k_par):
        k = np.hypot(k_perp, k_par) if spectrum == "spherical" else k_perp + 0.3 * k_par
        return 40.0 / (0.5 + k) ** 2

    X = drawn(300, power, rng)
    model = spectra(X, spectrum=spectrum, n_chunks=1, n_bins=30, quantity="power", log=False)
    found = model.transform(X)
    k, n_modes = model.bins_[0][spectrum]
    expected = power(k[:, 0], k[:, 1] if spectrum == "cylindrical" else 0)
    # Of the mean over 300 fields, whose modes come in pairs that say the same.
    error = np.sqrt(2 / n_modes / 300)
    assert (np.abs(found.mean(axis=0) / expected - 1) < 4.5 * error + 0.02).all()


def test_delta2_is_the_variance_in_an_e_fold_of_k(rng):
    X = drawn(3, lambda k_perp, k_par: 1 / (0.1 + k_perp), rng)
    one = spectra(X, quantity="power", log=False, spectrum="spherical").transform(X)
    model = spectra(X, log=False, spectrum="spherical")
    k = np.concatenate([each["spherical"][0][:, 0] for each in model.bins_])
    np.testing.assert_allclose(model.transform(X), k**3 * one / (2 * np.pi**2))


@pytest.mark.parametrize("spectrum", ["cylindrical", "spherical"])
@pytest.mark.parametrize("shape", [SHAPE, (11, 10, 15), (12, 10), (21,)], ids=str)
def test_parseval(shape, spectrum, rng):
    """The sum over all modes is the variance, but for the means of slices, which are left out."""
    X = rng.normal(-20, 30, size=(4, *shape))
    sizes = SIZES[: len(shape)]
    options = dict(n_chunks=1) if len(shape) != 2 else {}
    if len(shape) == 3:
        options["spectrum"] = spectrum
    model = spectra(X, cell_size=sizes, quantity="power", log=False, **options)
    (kinds,) = model.bins_
    ((_, n_modes),) = kinds.values()
    total = model.transform(X) @ n_modes / (np.prod(sizes) * np.prod(shape))
    axes = (1, 2) if len(shape) == 3 else tuple(range(1, X.ndim))
    rest = X - X.mean(axis=axes, keepdims=True)
    np.testing.assert_allclose(total, np.square(rest).reshape(4, -1).mean(axis=1))


def test_one_wave_is_in_one_bin():
    k_x, k_z = 2 * np.pi * 2 / (12 * 2.0), 2 * np.pi * 3 / (16 * 5.0)
    x, z = 2.0 * np.arange(12)[:, None, None], 5.0 * np.arange(16)
    X = np.broadcast_to(4 * np.cos(k_x * x + k_z * z), SHAPE)[None]
    model = spectra(X, n_chunks=1, n_bins=30, quantity="power", log=False)
    found, (k, n_modes) = model.transform(X)[0], model.bins_[0]["cylindrical"]
    at = np.argmax(found)
    np.testing.assert_allclose(k[at], [k_x, k_z])
    # 8 is the variance of the wave.
    np.testing.assert_allclose(found[at] * n_modes[at] / np.prod(SIZES) / np.prod(SHAPE), 8)
    assert np.delete(found, at).max() < 1e-9 * found[at]


def test_chunks_are_spectra_of_their_own(rng):
    X = rng.normal(size=(3, *SHAPE)) * np.repeat([1, 5], 8)
    both = spectra(X, n_chunks=2).transform(X)
    halves = [spectra(part, n_chunks=1).transform(part) for part in (X[..., :8], X[..., 8:])]
    np.testing.assert_allclose(both, np.concatenate(halves, axis=1))
    assert spectra(X, n_chunks=3).chunks_.tolist() == [[0, 5], [5, 11], [11, 16]]


def test_auto_chunks_are_few_and_not_short(rng):
    for n_z, n in [(90, 8), (470, 8), (20, 5), (5, 1), (3, 1)]:
        assert len(spectra(rng.normal(size=(2, 4, 4, n_z))).chunks_) == n


@pytest.mark.parametrize("taper", ["hann", "blackmanharris"])
def test_a_taper_keeps_the_power_and_the_leak_out(taper, rng):
    X = rng.normal(size=(400, *SHAPE))
    options = dict(n_chunks=1, quantity="power", log=False)
    with_taper = spectra(X, taper=taper, **options).transform(X).mean(axis=0)
    np.testing.assert_allclose(with_taper, np.prod(SIZES), rtol=0.15)  # white noise
    wave = (
        100
        * np.cos(2 * np.pi * 1.5 * np.arange(16) / 16)
        * np.cos(np.pi * np.arange(12) / 3)[:, None, None]
    )  # between two modes along the line of sight
    X = np.broadcast_to(wave, (1, *SHAPE))
    far = spectra(X, n_bins=30, **options).bins_[0]["cylindrical"][0][:, 1] > 0.5
    without, tapered = (
        spectra(X, n_bins=30, taper=one, **options).transform(X)[0, far].max()
        for one in (None, taper)
    )
    assert tapered < without / 30


@pytest.mark.parametrize("taper", ["hann", "blackmanharris"])
def test_a_taper_needs_four_slices_in_a_chunk(taper, rng):
    X = rng.normal(size=(2, *SHAPE))
    for n_chunks in (5, 6, 8, 16):
        with pytest.raises(ValueError, match="taper: expected None with chunks .*use fewer chunks"):
            spectra(X, taper=taper, n_chunks=n_chunks)
    with pytest.raises(ValueError, match="taper: .* such as 3, found"):
        spectra(X[..., :3], taper=taper)
    assert np.isfinite(spectra(X, taper=taper, n_chunks=4).transform(X)).all()


def test_a_taper_that_comes_after_fit_needs_them_too(rng):
    fitted = PowerSpectrumTransformer(n_chunks=8, cell_size=2.0).fit(rng.normal(size=(4, 6, 6, 16)))
    with pytest.raises(ValueError, match=r"taper: expected None with chunks of .* fit again"):
        fitted.set_params(taper="hann").transform(rng.normal(size=(4, 6, 6, 16)))


def test_moments(rng):
    X = rng.normal(-20, 30, size=(3, *SHAPE))
    model = spectra(X, n_chunks=2, moments=True, log=False)
    plain = spectra(X, n_chunks=2, log=False)
    names = model.get_feature_names_out().tolist()
    assert set(names) - set(plain.get_feature_names_out()) == {
        "chunk0_mean", "chunk0_variance", "chunk1_mean", "chunk1_variance",
    }  # fmt: skip
    found = model.transform(X)
    np.testing.assert_allclose(
        found[:, names.index("chunk1_mean")], X[..., 8:].mean(axis=(1, 2, 3))
    )
    variance = X[..., :8].var(axis=(1, 2, 3))
    np.testing.assert_allclose(found[:, names.index("chunk0_variance")], variance)
    logarithm = spectra(X, n_chunks=2, moments=True, floor=0.5).transform(X)
    np.testing.assert_allclose(
        logarithm[:, names.index("chunk0_variance")], np.log10(variance + 0.5)
    )


@pytest.mark.parametrize("quantity", ["delta2", "power"])
def test_the_floor_keeps_empty_and_constant_cones_finite(quantity, rng):
    X = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    X[0], X[1] = 0, -321.7
    with pytest.warns(UserWarning, match="constant"):
        found = spectra(X, quantity=quantity, floor=0.01, moments=True).transform(X)
    assert np.isfinite(found).all()
    if quantity == "delta2":
        without = spectra(X, floor=0.01)
        with pytest.warns(UserWarning, match="constant"):
            np.testing.assert_allclose(without.transform(X)[:2], -2, atol=1e-6)
    with pytest.warns(UserWarning, match="constant"):
        raw = spectra(X, quantity=quantity, log=False).transform(X)
    model = spectra(X)
    k = np.concatenate([each["cylindrical"][0] for each in model.bins_])
    shell = np.square(k).sum(axis=1) ** 1.5 / (2 * np.pi**2)
    floor = 0.01 if quantity == "delta2" else 0.01 / shell
    with pytest.warns(UserWarning, match="constant"):
        found = spectra(X, quantity=quantity, floor=0.01).transform(X)
    np.testing.assert_allclose(found, np.log10(raw + floor), atol=1e-9)


def test_the_global_signal_leaves_no_mark(rng):
    X = rng.normal(size=(3, *SHAPE))
    signal = 1e4 * rng.normal(size=(3, 1, 1, 16))
    options = dict(taper="hann", log=False)
    with pytest.warns(UserWarning, match="mK"):
        found = spectra(X, **options).transform(X + signal)
    np.testing.assert_allclose(found, spectra(X, **options).transform(X), rtol=1e-6)


def test_maps_and_signals(rng):
    maps, signals = rng.normal(size=(2, 8, 6)), rng.normal(size=(2, 40))
    of_maps = spectra(maps, cell_size=2.0)
    assert of_maps.get_feature_names_out()[0].startswith("chunk0_k0.")
    of_signals = spectra(signals, cell_size=2.0, n_chunks=2)
    assert len(of_signals.chunks_) == 2 and of_signals.transform(signals).shape[0] == 2
    with pytest.warns(NoEffectWarning, match="maps.* of n_chunks, taper"):
        spectra(maps, cell_size=2.0, n_chunks=3, taper="hann")
    with pytest.warns(NoEffectWarning, match="of spectrum"):
        spectra(maps, cell_size=2.0, spectrum="spherical")
    with pytest.raises(ValueError, match="at least two cells in a chunk"):
        spectra(signals, cell_size=2.0, n_chunks=40)
    with pytest.raises(ValueError, match="at least two cells on the sky"):
        spectra(rng.normal(size=(2, 1, 1, 8)))


def test_k_comes_from_the_grid_of_the_fields(rng):
    X = rng.normal(size=(2, *SHAPE))
    grid = Grid(SIZES, tuple(np.linspace(6, 9, 16)))
    model = PowerSpectrumTransformer(n_chunks=2).fit(ArrayFields(X, grid))
    assert model.k_unit_ == "1/Mpc"
    np.testing.assert_allclose(model.redshifts_, [[6, 7.4], [7.6, 9]])
    np.testing.assert_array_equal(model.transform(X), spectra(X, n_chunks=2).transform(X))
    with pytest.raises(ValueError, match=r"cell_size: .* cells of 2 x 3 x 5 Mpc, .*found \(3.0,"):
        PowerSpectrumTransformer(cell_size=3.0).fit(ArrayFields(X, grid))
    rounded = PowerSpectrumTransformer(n_chunks=2, cell_size=(2.005, 3.0, 5.0))
    assert rounded.fit(ArrayFields(X, grid)).cell_size_ == (2.005, 3.0, 5.0)
    given = spectra(X, n_chunks=2, cell_size=1.0)
    with pytest.warns(AssumedGridWarning, match="on axis 0, 1, 2; .* cubes of 1,"):
        bare = PowerSpectrumTransformer(n_chunks=2).fit(X)
    assert bare.k_unit_ == "1/cell" and bare.redshifts_ is None
    assert given.get_feature_names_out().tolist() == bare.get_feature_names_out().tolist()
    assert given.get_feature_names_out()[0] != model.get_feature_names_out()[0]


@pytest.mark.parametrize("spectrum", ["cylindrical", "spherical", "both"])
def test_what_is_not_known_of_cells_is_said_once(spectrum, rng):
    X, uneven = rng.normal(size=(2, *SHAPE)), tuple(np.linspace(6, 30, 16) ** 1.1)
    fields = ArrayFields(X, Grid((3.0, 4.0, None), uneven))
    for some, sizes, unit in [(X, (1.0,) * 3, "1/cell"), (fields, (3.0, 4.0, 3.0), "1/Mpc")]:
        model = PowerSpectrumTransformer(spectrum=spectrum)
        with pytest.warns(AssumedGridWarning, match="taken for cubes") as told:
            model.fit_transform(some)
        assert len(told) == 1
        assert model.cell_size_ == sizes and model.k_unit_ == unit
    if spectrum != "spherical":  # what is known counts
        given = PowerSpectrumTransformer(cell_size=(3.0, 4.0, 9.0)).fit(fields)
        one, two = (each.bins_[0]["cylindrical"][0][:, 0] for each in (model, given))
        np.testing.assert_allclose(one, two)


def test_names_say_chunk_and_k(rng):
    pandas = pytest.importorskip("pandas")
    X = rng.normal(size=(3, *SHAPE))
    model = spectra(X, spectrum="both", moments=True).set_output(transform="pandas")
    frame = model.transform(X)
    assert isinstance(frame, pandas.DataFrame) and frame.columns.is_unique
    k_perp, k_par = model.bins_[0]["cylindrical"][0][0]
    assert frame.columns[0] == f"chunk0_kperp{k_perp:.3g}_kpar{k_par:.3g}"
    assert frame.shape[1] == sum(
        len(n) for each in model.bins_ for _, n in each.values()
    ) + 2 * len(model.chunks_)


def test_files_are_read_a_block_at_a_time(rng, monkeypatch):
    X = rng.normal(size=(7, *SHAPE)).astype(np.float32)
    expected = spectra(X).transform(X)

    class Counted(ArrayFields):
        in_memory = False
        asked = ()

        def read(self, rows=None):
            values = super().read(rows)
            self.asked = (*self.asked, len(values))
            return values

    monkeypatch.setattr("skatr_sk.summaries.power_spectrum._VALUES", 2 * X[0].size)
    fields = Counted(X)
    np.testing.assert_allclose(spectra(X).transform(fields), expected, rtol=1e-12)
    assert fields.asked == (2, 2, 2, 1)


def test_settings_of_torch_do_not_matter(rng):
    X = rng.normal(size=(2, *SHAPE))
    expected = spectra(X).transform(X)
    with torch.device("meta"):
        np.testing.assert_array_equal(spectra(X).transform(X), expected)


def test_what_is_wrong_is_said_at_once(rng):
    X = rng.normal(size=(2, *SHAPE))
    wrong = dict(spectrum="sperical", n_chunks=0, floor=0, taper="hamming", cell_size=(1, -1, 1))
    with pytest.raises(ValueError, match="5 invalid") as error:
        spectra(X, **wrong)
    assert "did you mean 'spherical'" in str(error.value)
    with pytest.raises(ValueError, match="n_chunks: expected at most 16") as error:
        spectra(X, n_chunks=17, cell_size=(1.0, 2.0))
    assert "cell_size: expected one for each of 3 axes" in str(error.value)
    with pytest.warns(NoEffectWarning, match="log=False of floor"):
        spectra(X, log=False, floor=0.5)


def test_the_bundled_cones_differ_where_hydrogen_is_neutral():
    cones = load_lightcones()
    found = spectra(cones.data[:4], cell_size=cones.cell_size).transform(cones.data[:4])
    assert np.isfinite(found).all() and found[:, 100:].std(axis=0).min() > 0.1


# Peers --------------------------------------------------------------------------------------------


def test_powerbox_finds_the_same(rng):
    powerbox = pytest.importorskip("powerbox")
    X = rng.normal(size=(2, 12, 12, 12))
    model = spectra(X, cell_size=2.0, spectrum="spherical", n_chunks=1, quantity="power", log=False)
    sides = 2.0 * 12
    k = np.sqrt(sum(one**2 for one in wave_numbers((12,) * 3, (2.0,) * 3)))
    first, last = 2 * np.pi / sides, k.max()
    edges = np.geomspace(first * (1 - 1e-9), last * (1 + 1e-9), 5)
    seen = np.hypot(*wave_numbers((12,) * 3, (2.0,) * 3)[:2]) > 0
    found = model.transform(X)
    for cone, ours in zip(X, found, strict=True):
        theirs = powerbox.get_power(
            cone,
            sides,
            bins=edges,
            k_weights=np.fft.fftshift(seen).astype(float),
            bins_upto_boxlen=False,
        )
        np.testing.assert_allclose(ours, np.asarray(theirs.power), rtol=1e-6)


def test_names_differ_however_many_bins(rng):
    X = rng.normal(size=(2, 40, 40, 60))
    names = spectra(X, cell_size=2.0, spectrum="spherical", n_chunks=1, n_bins=2000)
    names = names.get_feature_names_out()
    assert len(set(names)) == len(names) > 400


def test_parameters_changed_after_fit_are_said(rng):
    X = rng.normal(size=(2, *SHAPE))
    model = spectra(X).set_params(n_bins=2)
    for call in (lambda: model.transform(X), model.get_feature_names_out):
        with pytest.raises(ValueError, match="expected the bins of fit.*; fit again after set_par"):
            call()
    assert model.fit(X).transform(X).shape[1] == len(model.get_feature_names_out())
