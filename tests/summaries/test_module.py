"""All from fields to summaries as one torch module: equal to transform, exported, compiled."""

import numpy as np
import pytest
import torch

from skatr_sk import SKATRTransformer
from tests.training.runs import transformer

SHAPES = {"signal": (12,), "map": (8, 6), "cone": (8, 8, 6)}


def fields(kind, n=24):
    return np.random.default_rng(0).normal(-20, 30, (n, *SHAPES[kind])).astype(np.float32)


def fitted(kind, **parameters):
    small = dict(max_epochs=1, cache=None)
    return transformer(**small | parameters).fit(fields(kind))


def exported(module, X):
    dynamic = ({0: torch.export.Dim("n_lightcones")},)
    return torch.export.export(module, (torch.from_numpy(X),), dynamic_shapes=dynamic)


LINEAR = dict(brightness_range=(-120, -1), embedding="linear")
APART = dict(embedding="fluctuations", subtract_mean=True, pooling="moments")


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("signal", {}),
        ("map", dict(whiten=False, pooling="max")),
        ("map", LINEAR),
        ("cone", {}),
        ("cone", dict(attention="axial", depth=2)),
        ("cone", dict(pooling="tokens")),
        ("cone", APART),
    ],
)
def test_the_module_gives_what_transform_gives(kind, parameters):
    skatr, X = fitted(kind, **parameters), fields(kind)
    expected, module = skatr.transform(X), skatr.as_module()
    assert (skatr.whitening_ is not None) == (module.matrix is not None)
    X[0, 0] = 0.0  # the sign of zero is none
    expected = skatr.transform(X)
    found = module(torch.from_numpy(X))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad and found.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        pytest.param("signal", {}, marks=pytest.mark.slow),
        pytest.param("map", LINEAR, marks=pytest.mark.slow),
        pytest.param("cone", {}, marks=pytest.mark.slow),
        ("cone", APART),
    ],
)
def test_an_exported_program_gives_it_for_any_number_of_fields(kind, parameters):
    skatr, X = fitted(kind, **parameters), fields(kind)
    expected = skatr.transform(X)
    program = exported(skatr.as_module(), X[:4]).module()
    for n in (1, 3, 24):
        again = program(torch.from_numpy(X[:n]))
        np.testing.assert_allclose(again.numpy(), expected[:n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_program_that_is_exported_under_autocast(trained):
    skatr, X = fitted("cone"), fields("cone")
    module = skatr.as_module().requires_grad_(trained)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program = exported(module, X[:4]).module()
    found = program(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(found, skatr.transform(X), rtol=1e-4, atol=1e-5)


def test_the_module_is_a_copy():
    skatr, X = fitted("cone"), fields("cone")
    before, module = skatr.transform(X), skatr.as_module()
    for weight in module.requires_grad_(True).parameters():
        weight.data.zero_()
    np.testing.assert_array_equal(skatr.transform(X), before)
    assert module(torch.from_numpy(X)).requires_grad
    with pytest.raises(ValueError, match="not fitted"):
        SKATRTransformer().as_module()


def test_the_module_keeps_its_state():
    skatr, X = fitted("cone"), torch.from_numpy(fields("cone"))
    module, other = skatr.as_module(), fitted("cone", random_state=8).as_module()
    other.load_state_dict(module.state_dict())
    other.scaling = module.scaling
    torch.testing.assert_close(other(X), module(X))


@pytest.mark.slow
def test_compiled_in_one_graph():
    skatr, X = fitted("cone"), fields("cone")
    compiled = torch.compile(skatr.as_module(), fullgraph=True, dynamic=True, backend="eager")
    for n in (24, 5):
        found = compiled(torch.from_numpy(X[:n])).numpy()
        np.testing.assert_allclose(found, skatr.transform(X[:n]), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    skatr, X = fitted("cone"), fields("cone")
    torch.onnx.export(exported(skatr.as_module(), X[:4]), dynamo=True).save(tmp_path / "skatr.onnx")
    session = runtime.InferenceSession(tmp_path / "skatr.onnx")
    name = session.get_inputs()[0].name
    for n in (1, 24):
        found = session.run(None, {name: X[:n]})[0]
        np.testing.assert_allclose(found, skatr.transform(X[:n]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 6, 8), (8, 6), (2, 4, 3), (2, 8, 6, 1)])
def test_fields_of_another_shape_are_refused(shape):
    module = fitted("map").as_module()
    with pytest.raises(ValueError, match=r"fields: expected shape \(n, 8, 6\)"):
        module(torch.zeros(shape))


def test_a_module_of_another_precision_says_so():
    X = np.random.default_rng(0).normal(size=(8, 4, 4, 6)).astype(np.float32)
    small = dict(patch_size=2, embed_dim=8, depth=1, max_epochs=0, device="cpu", random_state=0)
    module = SKATRTransformer(**small).fit(X).as_module()
    expected = module(torch.from_numpy(X))
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match=f"weights in float32.*found {dtype}"):
            module.to(dtype)(torch.from_numpy(X))
    again = SKATRTransformer(**small).fit(X).as_module()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(again(torch.from_numpy(X)), expected, atol=0.1, rtol=0.1)
