"""ImageNet-C's corruptions against their published definitions, written out anew in NumPy."""

import io
import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.stats import norm, poisson

from robustft.data.corruptions import blur, digital
from robustft.data.corruptions.apply import corrupt, corrupted_pixels
from robustft.errors import InputError

SEVERITIES = range(1, 6)


def rng(*seed):
    return np.random.default_rng(seed)


def random_image(side=32, seed=0):
    return rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def smooth_image(side=32):
    down, right = np.mgrid[:side, :side] / (side - 1)
    return np.stack([255 * down, 255 * right, 255 * (1 - down)], axis=-1).astype(np.uint8)


def flat(value, side=64):
    return np.full((side, side, 3), value, np.uint8)


def under(image, name, severity, seed=0):
    return corrupted_pixels(image, name, severity, rng(seed))


def near(share, expected, count):
    """Within five standard deviations of a share of `count` draws."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count) + 1e-12


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_deviation(severity):
    deviation = {1: 0.08, 2: 0.12, 3: 0.18, 4: 0.26, 5: 0.38}[severity]
    found = under(flat(100), "gaussian-noise", severity)
    for level in (0, 40, 100, 160, 254):
        below = norm.cdf(((level + 1) / 255 - 100 / 255) / deviation)
        assert near((found <= level).mean(), below, found.size)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_counts_photons(severity):
    photons = {1: 60, 2: 25, 3: 12, 4: 5, 5: 3}[severity]
    found = under(flat(51), "shot-noise", severity)
    levels = (np.minimum(np.arange(200) / photons, 1) * 255).astype(np.uint8)
    assert set(np.unique(found)) <= set(levels)
    for count in range(3):
        expected = poisson.cdf(count, photons * 0.2)
        assert near((found <= levels[count]).mean(), expected, found.size)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_strikes_so_many_values(severity):
    share = {1: 0.03, 2: 0.06, 3: 0.09, 4: 0.17, 5: 0.27}[severity]
    found = under(flat(100, 96), "impulse-noise", severity)
    for value, expected in ((0, share / 2), (255, share / 2), (100, 1 - share)):
        assert near((found == value).mean(), expected, found.size)
    channels = found == 100
    alike = (channels.all(axis=2) | ~channels.any(axis=2)).mean()
    assert near(alike, share**3 + (1 - share) ** 3, found.size // 3), "channels are struck alone"


def bell(place, deviation):
    return math.exp(-(place**2) / (2 * deviation**2))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_a_disk_with_soft_edges(severity):
    radius, deviation = {1: (3, 0.1), 2: (4, 0.5), 3: (6, 0.5), 4: (8, 0.5), 5: (10, 0.5)}[severity]
    reach, soft = (8, 1) if radius <= 8 else (10, 2)
    side = 2 * reach + 1

    def mirrored(i):
        return abs(i) if i < side else 2 * (side - 1) - i

    sharp = np.array(
        [
            [(r - reach) ** 2 + (c - reach) ** 2 <= radius**2 for c in range(side)]
            for r in range(side)
        ]
    )
    taps = np.array([bell(i, deviation) for i in range(-soft, soft + 1)])
    taps = np.outer(taps, taps) / taps.sum() ** 2
    kernel = np.zeros((side, side))
    for r, c, i, j in itertools.product(*[range(side)] * 2, *[range(-soft, soft + 1)] * 2):
        kernel[r, c] += taps[i + soft, j + soft] * sharp[mirrored(r + i), mirrored(c + j)]
    kernel /= sharp.sum()
    np.testing.assert_allclose(blur.disk(radius, deviation), kernel, atol=1e-12)
    image = random_image(24)
    wide = np.pad(image / 255, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    expected = np.zeros(image.shape)
    for r, c in itertools.product(range(side), repeat=2):
        expected += kernel[r, c] * wide[r : r + 24, c : c + 24]
    assert_levels(under(image, "defocus-blur", severity), expected)


def assert_levels(found, expected, apart=1):
    """As rounded down from [0, 1]; a rounding error may take the level below."""
    wanted = np.floor(np.clip(expected, 0, 1) * 255).astype(int)
    assert abs(found.astype(int) - wanted).max() <= apart
    assert (found == wanted).mean() > 0.98


def blurred(image, deviation):
    """A Gaussian to 4 deviations, edges going on."""
    reach = int(4 * deviation + 0.5)
    taps = np.array([bell(i, deviation) for i in range(-reach, reach + 1)])
    taps /= taps.sum()
    for axis in (0, 1):
        pads = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        wide, side = np.pad(image, pads, "edge"), image.shape[axis]
        image = sum(t * np.take(wide, range(i, i + side), axis) for i, t in enumerate(taps))
    return image


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_takes_pixels_from_near_one_after_the_other(severity):
    deviation, reach, rounds = {
        1: (0.7, 1, 2), 2: (0.9, 2, 1), 3: (1.0, 2, 3), 4: (1.1, 3, 2), 5: (1.5, 4, 2)
    }[severity]  # fmt: skip
    image, side = smooth_image(28), 28
    found = np.floor(blurred(image / 255, deviation) * 255 + 1e-9).astype(np.uint8)
    draws = rng(0)
    for _ in range(rounds):
        moves = draws.integers(-reach, reach, size=(side - 2 * reach, side - 2 * reach, 2))
        for h in range(side - reach, reach, -1):
            for w in range(side - reach, reach, -1):
                down, right = moves[h - reach - 1, w - reach - 1]
                first, second = found[h, w], found[h + down, w + right]
                first[:], second[:] = second, first  # as the release: both end as the second
    assert_levels(under(image, "glass-blur", severity), blurred(found / 255, deviation))


@pytest.mark.parametrize(
    ("severity", "degrees"), [(1, 0.0), (2, 45.0), (3, -45.0), (4, 17.3), (5, -101.0)]
)
def test_motion_is_half_a_gaussian_along_a_line(severity, degrees):
    radius, deviation = {1: (10, 3), 2: (15, 5), 3: (15, 8), 4: (15, 12), 5: (20, 15)}[severity]
    image, side = random_image(20), 20
    weights = [bell(i, deviation) for i in range(2 * radius + 1)]
    expected = np.zeros(image.shape)
    for h, w, (i, weight) in itertools.product(range(side), range(side), enumerate(weights)):
        right = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
        at = min(max(h + down, 0), side - 1), min(max(w + right, 0), side - 1)
        expected[h, w] += weight / sum(weights) * image[at]
    found = blur.moved(image, radius, deviation, degrees)
    assert np.array_equal(found, np.floor(np.rint(257 * expected) / 257))
    assert np.array_equal(blur.moved(flat(77), radius, deviation, degrees), flat(77))
    angle = rng(0).uniform(-45, 45)
    again = blur.moved(image, radius, deviation, angle)
    assert np.array_equal(under(image, "motion-blur", severity), again)


def enlarged(image, factor):
    """The middle, its corners kept, linearly interpolated; what is too much is trimmed."""
    side = len(image)
    kept = math.ceil(side / factor)
    start = (side - kept) // 2
    part = image[start : start + kept, start : start + kept]
    size = round(kept * factor)
    at = np.linspace(0, kept - 1, size)
    for axis in (0, 1):
        part = np.apply_along_axis(lambda line: np.interp(at, np.arange(kept), line), axis, part)
    trim = (size - side) // 2
    return part[trim : trim + side, trim : trim + side]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_is_the_mean_of_enlargements(severity):
    most, step, count = {
        1: (1.11, 0.01, 12), 2: (1.16, 0.01, 16), 3: (1.21, 0.02, 11), 4: (1.26, 0.02, 13),
        5: (1.31, 0.03, 11),
    }[severity]  # fmt: skip
    factors = [1 + i * step for i in range(count)]
    assert np.allclose(np.arange(1, most, step), factors), "as many as NumPy makes of the release's"
    image = smooth_image(48) / 255
    expected = (image + sum(enlarged(image, factor) for factor in factors)) / (count + 1)
    assert_levels(under(smooth_image(48), "zoom-blur", severity), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_makes_pale_and_falls_both_ways(severity):
    mean, deviation, size, least, radius, spread, kept = {
        1: (0.1, 0.3, 3, 0.5, 10, 4, 0.8), 2: (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        3: (0.55, 0.3, 4, 0.9, 12, 8, 0.7), 4: (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        5: (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    }[severity]  # fmt: skip
    image, draws = random_image(48), rng(0)
    layer = enlarged(draws.normal(mean, deviation, (48, 48))[..., None], size)[..., 0]
    flakes = (np.clip(np.where(layer < least, 0, layer), 0, 1) * 255).astype(np.uint8)
    falling = blur.moved(flakes, radius, spread, draws.uniform(-135, -45)) / 255
    values = image / 255
    grey = 0.299 * values[..., 0] + 0.587 * values[..., 1] + 0.114 * values[..., 2]
    pale = np.maximum(values, 1.5 * grey[..., None] + 0.5)
    expected = kept * values + (1 - kept) * pale
    expected += falling[..., None] + falling[::-1, ::-1, None]
    assert_levels(under(image, "snow", severity), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_lies_over_the_image(severity, photographs):
    of_image, of_frost = {
        1: (1, 0.4),
        2: (0.8, 0.6),
        3: (0.7, 0.7),
        4: (0.65, 0.7),
        5: (0.6, 0.75),
    }[severity]
    image = random_image(32)
    seen = set()
    for seed in range(40):
        number = 1 + rng(seed).integers(5)
        expected = np.clip(of_image * image + of_frost * 40.0 * number, 0, 255)
        found = under(image, "frost", severity, seed)
        assert abs(found - expected).max() <= 2  # JPEGs of one grey may be off by one
        seen.add(int(number))
    assert seen == {1, 2, 3, 4, 5}


def plasma(side, decay, draws):
    """Diamond and square, point by point."""
    heights, step, w = np.zeros((side, side)), side, 100.0
    while step > 1:
        half = step // 2

        def put(starts, neighbours, step=step, w=w):
            found = {}
            for r, c in itertools.product(
                range(starts[0], side, step), range(starts[1], side, step)
            ):
                around = [heights[(r + i) % side, (c + j) % side] for i, j in neighbours]
                found[r, c] = sum(around) / 4 + w * draws.uniform(-w, w)
            for at, value in found.items():
                heights[at] = value

        diagonal = [(-half, -half), (-half, half), (half, -half), (half, half)]
        straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
        put((half, half), diagonal)
        put((0, half), straight)
        put((half, 0), straight)
        step, w = half, w / decay
    return (heights - heights.min()) / (heights.max() - heights.min())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_is_a_fractal_cloud(severity):
    thickness, decay = {1: (1.5, 2), 2: (2, 2), 3: (2.5, 1.7), 4: (2.5, 1.5), 5: (3, 1.4)}[severity]
    image = random_image(24) // 2
    cloud = plasma(32, decay, rng(0))[:24, :24, None]
    brightest = image.max() / 255
    expected = (image / 255 + thickness * cloud) * brightest / (brightest + thickness)
    assert_levels(under(image, "fog", severity), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_raises_the_value_alone(severity):
    image = random_image(24)
    image[0, :3] = [[0, 0, 0], [255, 255, 255], [9, 9, 9]]
    hsv = rgb_to_hsv(image / 255)
    hsv[..., 2] = np.minimum(hsv[..., 2] + severity / 10, 1)
    assert_levels(under(image, "brightness", severity), hsv_to_rgb(hsv))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_towards_each_channels_mean(severity):
    image, kept = smooth_image(), {1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1, 5: 0.05}[severity]
    expected = np.stack(
        [kept * image[..., c] / 255 + (1 - kept) * image[..., c].mean() / 255 for c in range(3)], -1
    )
    assert_levels(under(image, "contrast", severity), expected)


def sampled(image, row, column, fold):
    """Between four pixels; fold: where a place beyond the edge is in the image."""
    r, c = math.floor(row), math.floor(column)
    total = 0.0
    for i, j in itertools.product((0, 1), repeat=2):
        weight = (row - r if i else 1 - row + r) * (column - c if j else 1 - column + c)
        total = total + weight * image[fold(r + i, len(image)), fold(c + j, len(image))]
    return total


def edge_once(i, side):
    i %= 2 * (side - 1)
    return min(i, 2 * (side - 1) - i)


def edge_twice(i, side):
    i %= 2 * side
    return min(i, 2 * side - 1 - i)


def smoothed(noise, deviation):
    """A Gaussian to 3 deviations over what repeats as in a mirror, edges standing twice."""
    reach, side = int(3 * deviation + 0.5), len(noise)
    taps = np.array([bell(i, deviation) for i in range(-reach, reach + 1)])
    at = [[edge_twice(i + k, side) for k in range(-reach, reach + 1)] for i in range(side)]
    matrix = np.zeros((side, side))
    for i, k in itertools.product(range(side), range(2 * reach + 1)):
        matrix[i, at[i][k]] += taps[k] / taps.sum()
    return matrix @ noise @ matrix.T


@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_is_an_affine_map_and_a_smooth_displacement(severity):
    size, smoothness, corner = (244 * x for x in {
        1: (2, 0.7, 0.1), 2: (2, 0.08, 0.2), 3: (0.05, 0.01, 0.02), 4: (0.07, 0.01, 0.02),
        5: (0.12, 0.01, 0.02),
    }[severity])  # fmt: skip
    image, side, draws = smooth_image(24), 24, rng(0)
    third, middle = side // 3, side // 2
    before = np.array([[1, 1], [1, -1], [-1, -1]]) * third + middle  # (x, y)
    after = before + draws.uniform(-corner, corner, (3, 2))
    # The map sends before to after; the image at (x, y) comes from where it was.
    solved = np.linalg.solve(np.column_stack([before, np.ones(3)]), after)
    turn, shift = solved[:2].T, solved[2]
    turned = np.zeros(image.shape)
    for r, c in itertools.product(range(side), repeat=2):
        x, y = np.linalg.inv(turn) @ (np.array([c, r]) - shift)
        turned[r, c] = sampled(image / 255, y, x, edge_once)
    right, down = (size * smoothed(draws.uniform(-1, 1, (side, side)), smoothness) for _ in "xy")
    expected = np.zeros(image.shape)
    for r, c in itertools.product(range(side), repeat=2):
        expected[r, c] = sampled(turned, r + down[r, c], c + right[r, c], edge_twice)
    assert_levels(under(image, "elastic-transform", severity), expected)
    assert np.allclose(digital.affine(image / 255, np.zeros((3, 2))), image / 255)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_averages_boxes_and_repeats_them(severity):
    side, small = 40, {1: 24, 2: 20, 3: 16, 4: 12, 5: 10}[severity]
    image = random_image(side)
    # A pixel is in the box that its middle lies in; Pillow counts a box's far edge as within it.
    middle = (np.arange(side) + 0.5) * small / side
    box, back = np.ceil(middle).astype(int) - 1, np.floor(middle).astype(int)
    means = np.zeros((small, small, 3))
    for r, c in itertools.product(range(small), repeat=2):
        means[r, c] = image[box == r][:, box == c].mean(axis=(0, 1))
    found = under(image, "pixelate", severity)
    assert abs(found - means[back][:, back]).max() <= 1
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == small**2


# The tables of the JPEG standard's annex K, by rows.
LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99"""
CHROMINANCE = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66" + " 99" * 38
)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_quantises_by_the_standards_tables(severity):
    quality = {1: 25, 2: 18, 3: 15, 4: 10, 5: 7}[severity]
    tables = [
        [min(max((int(x) * (5000 // quality) + 50) // 100, 1), 255) for x in text.split()]
        for text in (LUMINANCE, CHROMINANCE)
    ]
    held = io.BytesIO()
    Image.fromarray(smooth_image(64)).save(held, "JPEG", qtables=tables, subsampling="4:2:0")
    expected = np.asarray(Image.open(held))
    assert np.array_equal(under(smooth_image(64), "jpeg-compression", severity), expected)


@pytest.mark.parametrize(("name", "severity"), [("fog", 0), ("fog", 6), ("rain", 1)])
def test_what_is_no_corruption_is_refused(name, severity):
    with pytest.raises(InputError, match="expected"):
        corrupted_pixels(random_image(), name, severity, rng(0))


def test_a_picture_is_brought_to_224_and_through_a_jpeg():
    """The middle of an image of 256 pixels, wherever it began."""
    wide = Image.fromarray(np.tile(smooth_image(512), (1, 2, 1)))
    found = corrupt(wide, "contrast", 1, rng(0))
    inner = np.asarray(wide.resize((512, 256), Image.Resampling.BILINEAR))[16:240, 144:368]
    held = io.BytesIO()
    Image.fromarray(corrupted_pixels(inner, "contrast", 1, rng(0))).save(held, "JPEG", quality=85)
    assert np.array_equal(np.asarray(found), np.asarray(Image.open(held)))
