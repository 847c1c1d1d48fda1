import pytest
import torch

from cosa.cam import _Resized, filter_by_labels, free_of_padding, normalize, resize
from cosa.core.tensors import at_least_float32


def test_normalize_scales_each_map_on_its_own():
    cam = torch.tensor([[[[-1.0, 0.0], [1.0, 3.0]], [[10.0, 20.0], [10.0, 30.0]]]])
    expected = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.5], [0.0, 1.0]]]])
    assert torch.equal(normalize(cam), expected)


@pytest.mark.parametrize("value", [0.0, 7.5, -3.0])
def test_normalize_turns_a_constant_map_into_zeros(value):
    assert torch.equal(normalize(torch.full((2, 3, 4, 4), value)), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_normalize_keeps_the_dtype_and_reaches_both_bounds(dtype):
    cam = torch.linspace(-60000, 60000, 25).reshape(1, 1, 5, 5).to(dtype)
    scaled = normalize(cam)
    assert scaled.dtype == dtype
    assert scaled.min() == 0 and scaled.max() == 1


def test_normalize_ignores_a_positive_scale_and_a_shift():
    cam = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.manual_seed(0))
    assert torch.allclose(normalize(3 * cam - 5), normalize(cam))


def test_filter_zeroes_absent_classes_only():
    cam = torch.rand(2, 3, 4, 4) + 0.1
    cam[0, 1] = float("nan")
    filtered = filter_by_labels(cam, torch.tensor([[1, 0, 0], [0, 1, 1]]))
    assert torch.equal(filtered[0, 0], cam[0, 0])
    assert torch.equal(filtered[1, 1:], cam[1, 1:])
    assert not filtered[0, 1:].any() and not filtered[1, 0].any()


def test_filter_reports_labels_of_another_shape():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        filter_by_labels(torch.rand(2, 3, 4, 4), torch.ones(2, 4))


def test_at_least_float32():
    assert at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_normalize_leaves_padding_out_of_the_scale():
    cam = torch.tensor([[[[float("nan"), -99.0, 2.0], [99.0, 4.0, 3.0]]]])
    valid = torch.tensor([[[[False, False, True], [False, True, True]]]])
    expected = torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 1.0, 0.5]]]])
    assert torch.equal(normalize(cam, valid), expected)
    assert torch.equal(normalize(cam, torch.zeros_like(valid)), torch.zeros_like(cam))


def test_cells_with_a_single_pixel_of_padding_are_not_free():
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[0, 3, 2] = False
    free = free_of_padding(valid, (2, 3))
    assert free.tolist() == [[[True] * 3, [True, False, True]], [[True] * 3] * 2]
    assert torch.equal(free_of_padding(valid, (4, 6)), valid)


@pytest.mark.parametrize("size", [(12, 20), (4, 5), (9, 2)])
def test_the_way_back_by_matrix_products_is_that_of_the_resize(size):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, *size, dtype=torch.float64)
    own = torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    expected, = torch.autograd.grad((own * weights).sum(), maps)
    resized = _Resized.apply(maps, size)
    assert torch.equal(resized, resize(maps.detach(), size)) and torch.equal(resized, own)
    assert size == (4, 5) or "_Resized" in str(resize(maps, size).grad_fn)
    found, = torch.autograd.grad((resized * weights).sum(), maps)
    torch.testing.assert_close(found, expected)


@pytest.mark.cuda
def test_on_a_gpu_it_is_exact_and_the_same_each_time():
    torch.manual_seed(0)
    maps = torch.randn(2, 21, 14, 14, requires_grad=True)
    weights = torch.randn(2, 21, 224, 224)
    expected, = torch.autograd.grad((resize(maps, (224, 224)) * weights).sum(), maps)
    on_gpu = maps.detach().cuda().requires_grad_(True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = [torch.autograd.grad((resize(on_gpu, (224, 224)) * weights.cuda()).sum(), on_gpu)[0]
                 for _ in range(2)]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0].cpu(), expected, rtol=1e-4, atol=1e-4)
