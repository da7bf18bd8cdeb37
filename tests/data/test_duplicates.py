"""Duplicates against naive searches, on copies made from synthetic tiles, and where nothing must be found."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sscl.data import duplicates, hashes, keypoints, voting
from sscl.data.duplicates import Pair, clusters_of, find_pairs, join_groups
from sscl.data.hashes import SYMMETRIES
from sscl.data.synthetic import draw_tile

SIZE_PX = duplicates.SIZE_PX
COUNT = 8
pytestmark = pytest.mark.usefixtures("detected_once")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    cv2.setNumThreads(1)


@pytest.fixture(scope="module")
def originals() -> np.ndarray:
    return np.stack([draw_tile(index, seed=3, size_px=SIZE_PX).image for index in range(COUNT)])


def crop(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = round(0.9 * len(tile))
    x, y = rng.integers(0, len(tile) - side + 1, 2)
    return cv2.resize(tile[y : y + side, x : x + side], tile.shape[:2], interpolation=cv2.INTER_CUBIC)


def jpeg(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    quality = int(rng.integers(60, 81))
    return cv2.imdecode(cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def colour(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    density = -np.log((tile + 1.0) / 256)
    return (
        (np.exp(-density * rng.uniform(0.88, 1.12, 3)) * 256 * rng.uniform(0.95, 1.05) - 1)
        .clip(0, 255)
        .astype(np.uint8)
    )


def turn(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(moved(tile, int(rng.integers(1, 8))))


def rotate(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by up to 25 degrees and cut to what lies inside, as LC25000 was made."""
    angle = rng.uniform(5, 25)
    zoom = np.cos(np.radians(angle)) + np.sin(np.radians(angle))
    middle = (len(tile) - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, zoom)
    return cv2.warpAffine(tile, matrix, tile.shape[:2], flags=cv2.INTER_CUBIC)


def everything(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return jpeg(colour(crop(turn(tile, rng), rng), rng), rng)


def moved(tile: np.ndarray, symmetry: int) -> np.ndarray:
    """One of SYMMETRIES, by another road than the module's: what was done to the tile."""
    return (
        tile,
        np.fliplr(tile),
        np.flipud(tile),
        np.rot90(tile, 2),
        tile.swapaxes(0, 1),
        np.rot90(tile, -1),
        np.rot90(tile, 1),
        np.rot90(tile.swapaxes(0, 1), 2),
    )[symmetry]


@pytest.mark.parametrize(
    ("kind", "least"),
    [(turn, 1.0), (crop, 0.95), (jpeg, 1.0), (colour, 1.0), (rotate, 0.9), (everything, 0.9)],
    ids=["turn", "crop", "jpeg", "colour", "rotate", "everything"],
)
def test_near_duplicates_are_found_and_no_others(kind, least, originals):
    rng = np.random.default_rng(7)
    copies = np.stack([kind(tile, rng) for tile in originals])
    pairs = find_pairs(np.concatenate([originals, copies]), neighbours=8, stretched=False)
    found = {(pair.first, pair.second) for pair in pairs}
    true = {(row, COUNT + row) for row in range(COUNT)}
    assert len(found & true) >= least * COUNT
    assert found - true == set()


def test_the_order_of_the_tiles_changes_nothing(originals):
    rng = np.random.default_rng(0)
    images = np.concatenate([originals, [everything(tile, rng) for tile in originals]])
    order = rng.permutation(len(images))
    first = {frozenset((pair.first, pair.second)) for pair in find_pairs(images, neighbours=1, stretched=False)}
    again = find_pairs(images[order], neighbours=1, stretched=False)
    second = {frozenset(order[[pair.first, pair.second]].tolist()) for pair in again}
    assert first == second
    assert len(first) >= 7


def test_equal_pixels_are_linked_to_the_first(originals):
    images = originals[[0, 1, 0, 2, 1, 0]]
    pairs = find_pairs(images)
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [
        (*rows, "exact") for rows in ((0, 2), (1, 4), (0, 5))
    ]


@pytest.mark.parametrize("symmetry", range(8))
def test_the_movement_says_what_was_done(symmetry, originals):
    copy = np.ascontiguousarray(moved(jpeg(originals[0], np.random.default_rng(0)), symmetry))
    (pair,) = find_pairs(np.stack([originals[0], copy, originals[1]]))
    assert (pair.first, pair.second, pair.kind) == (0, 1, "hash")
    assert pair.movement == SYMMETRIES[symmetry]
    assert pair.score > 0.95


def test_the_hash_is_the_signs_of_a_plain_cosine_transform_of_the_moved_tile(originals):
    luma = np.stack([hashes.thumbnail(duplicates.luma_of(tile)) for tile in originals[:3]])
    signs = hashes.hash_signs(hashes.lowest(luma))
    assert signs.shape == (8, 3, hashes.BITS)
    x = np.arange(32)
    waves = np.cos(np.pi * (2 * x[None] + 1) * np.arange(8)[:, None] / 64)  # (8, 32)
    for symmetry in range(8):
        for row, tile in enumerate(luma):
            naive = (waves @ moved(tile, symmetry) @ waves.T).ravel()[1:]
            sure = np.abs(naive) > 1e-3
            assert sure.sum() > 55
            np.testing.assert_array_equal(signs[symmetry, row][sure], np.sign(naive)[sure])


def test_no_symmetry_changes_the_invariants_and_they_bring_nothing_further_apart():
    tiles = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    tiles /= np.linalg.norm(tiles, axis=(1, 2), keepdims=True)
    every = np.stack([moved(tile, symmetry) for tile in tiles for symmetry in range(8)])
    found = hashes.invariants(hashes.lowest(every)).reshape(2, 8, -1)
    assert np.ptp(found, axis=1).max() < 1e-5
    nearest = min(np.linalg.norm(tiles[0] - moved(tiles[1], symmetry)) for symmetry in range(8))
    assert 0 < np.linalg.norm(found[0, 0] - found[1, 0]) < nearest


def test_same_pictures_are_those_of_a_double_loop(number):
    number(hashes_block=7)  # several blocks
    rng = np.random.default_rng(1)
    smooth = [cv2.GaussianBlur(rng.normal(size=(32, 32)), (0, 0), 3) for _ in range(15)]
    near = [moved(tile, i % 8) + 0.02 * rng.normal(size=(32, 32)) for i, tile in enumerate(smooth[:10])]
    tiles = np.stack([*smooth, *near]).astype(np.float32)
    tiles -= tiles.mean((1, 2), keepdims=True)
    tiles /= np.linalg.norm(tiles, axis=(1, 2), keepdims=True)
    expected = {}
    signs = hashes.hash_signs(hashes.lowest(tiles))
    for i in range(len(tiles)):
        for j in range(i + 1, len(tiles)):
            for symmetry in range(8):
                distance = int((signs[0, i] != signs[symmetry, j]).sum())
                score = float((tiles[i] * moved(tiles[j], symmetry)).sum())
                if distance <= 10 and score >= 0.95 and score > expected.get((i, j), (0, 0))[1]:
                    expected[i, j] = distance, score
    found = {(pair.first, pair.second): (pair.distance, pair.score) for pair in hashes.same_pictures(tiles)}
    assert found.keys() == expected.keys()
    assert len(expected) >= 8
    for key, (distance, score) in found.items():
        assert distance == expected[key][0]
        assert score == pytest.approx(expected[key][1], abs=1e-5)


def test_nearest_pairs_are_those_of_a_full_sort(number):
    number(duplicates_block=4)
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(11, 5)).astype(np.float32)
    cosine = vectors @ vectors.T
    expected = set()
    for row in range(11):
        order = [column for column in np.argsort(-cosine[row]) if column != row]
        expected |= {(min(row, column), max(row, column)) for column in order[:3]}
    assert duplicates.nearest_pairs(vectors, count=3).keys() == expected


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_alignment_gives_back_the_map_that_was_made(mirrored, originals):
    first = duplicates.luma_of(originals[2])
    matrix = cv2.getRotationMatrix2D((64, 60), 33, 1.2) + [[0, 0, 4], [0, 0, -3]]
    second = cv2.warpAffine(first, matrix, first.shape, flags=cv2.INTER_CUBIC)
    second = np.ascontiguousarray(second[:, ::-1]) if mirrored else second
    points = points_of(first, second)
    found = keypoints.align(first, second, points)
    assert found is not None
    assert found.mirrored == mirrored
    corners = np.array([[30, 30, 1], [90, 40, 1], [50, 100, 1]]).T
    np.testing.assert_allclose(found.matrix @ corners, matrix @ corners, atol=1.5)
    assert found.correlation > 0.97
    assert "1.2" in found.words
    assert ("mirrored" in found.words) == mirrored
    back = found.reversed(len(first))
    straight = keypoints.align(second, first, points[::-1])
    np.testing.assert_allclose(back.matrix @ corners, straight.matrix @ corners, atol=2)
    assert back.overlap == pytest.approx(straight.overlap, abs=0.08)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (
            [[0, -1, 127], [1, 0, 0]],
            "turned 90°, 1.00 times as large",
        ),  # the upper left corner comes to the upper right
        ([[0, 1, 0], [-1, 0, 127]], "turned 270°, 1.00 times as large"),
        ([[2, 0, -5], [0, 2, 3]], "upright, 2.00 times as large"),
    ],
)
def test_an_alignment_in_words(matrix, words):
    found = keypoints.Alignment(np.array(matrix, dtype=float), False, 9, 1.0, 1.0)
    assert found.words == words
    assert keypoints.Alignment(found.matrix, True, 9, 1.0, 1.0).words == f"mirrored, {words}"


def points_of(*lumas: np.ndarray) -> tuple[keypoints.Keypoints, ...]:
    found = [keypoints.detect(luma) for luma in lumas]
    coder = keypoints.learn(np.concatenate([descriptors for _, descriptors in found]))
    return tuple(keypoints.coded(*one, coder) for one in found)


def test_codes_say_what_descriptors_say_and_serve_mirrored_keypoints(originals):
    descriptors = keypoints.detect(duplicates.luma_of(originals[0]))[1]
    coder = keypoints.learn(descriptors)
    codes, mirrored = coder(descriptors), coder(descriptors[:, keypoints._MIRRORED])
    assert np.abs(mirrored.astype(int) - keypoints.mirrored_codes(codes)).max() <= 1  # rounding
    rooted = np.sqrt(descriptors / descriptors.sum(1, keepdims=True))
    gaps = np.linalg.norm(rooted[:, None] - rooted, axis=2)[np.triu_indices(len(rooted), 1)]
    likeness = (codes.astype(float) @ codes.T)[np.triu_indices(len(rooted), 1)]
    assert np.corrcoef(gaps, likeness)[0, 1] < -0.7


def test_keypoints_of_many_tiles_are_kept_in_order(originals):
    points = points_of(*map(duplicates.luma_of, originals[:3]))
    kept = keypoints.Collected(3)
    for tile, point in enumerate(points):
        kept.add(point, tile=tile)
    for row, point in enumerate(points):
        np.testing.assert_array_equal(kept[row].places, point.places)
        np.testing.assert_array_equal(kept.codes[kept.pictures == row], point.codes)


def collected(codes: np.ndarray, tiles: int, angles: np.ndarray | None = None) -> keypoints.Collected:
    points = keypoints.Collected(tiles)
    angles = np.zeros(len(codes)) if angles is None else angles
    for tile, (part, turns) in enumerate(zip(np.split(codes, tiles), np.split(angles, tiles), strict=True)):
        points.add(keypoints.Keypoints(np.zeros((len(part), 2)), turns, np.zeros(len(part)), part), tile=tile)
    return points


@pytest.mark.parametrize("mirrored", [False, True])
def test_each_keypoint_votes_for_the_tile_with_the_one_most_like_it(mirrored):
    """In one cell, so that all are compared: tiles 0 and 1 share five keypoints."""
    codes = np.random.default_rng(0).integers(-50, 51, (24, keypoints.CODE)).astype(np.int8)
    codes[6:11] = keypoints.mirrored_codes(codes[:5]) if mirrored else codes[:5]
    assert voting.candidates(collected(codes, 4), count=1).tolist()[0] == [0, 1]


def test_votes_of_many_cells_find_what_is_equal(number):
    number(voting_cell=24)
    codes = np.random.default_rng(1).integers(-50, 51, (400, keypoints.CODE)).astype(np.int8)
    codes[200:] = codes[:200]  # tile i + 20 has the keypoints of tile i
    found = voting.candidates(collected(codes, 40), count=1).tolist()
    assert [row for row in range(20) if [row, row + 20] not in found] == []
    alike = voting.candidates(collected(np.zeros((100, keypoints.CODE), np.int8), 10), count=2)
    assert (alike[:, 0] != alike[:, 1]).all()


def test_votes_count_together_where_they_agree_on_a_turn():
    """Tile 1 has tile 0's keypoints, all turned alike; tile 3 has tile 2's, each turned otherwise."""
    codes = np.random.default_rng(2).integers(-50, 51, (80, keypoints.CODE)).astype(np.int8)
    codes[20:40], codes[60:] = codes[:20], codes[40:60]
    angles = np.zeros(80)
    angles[20:40], angles[60:] = 200, np.arange(20) * 90
    group = np.repeat([0, 1], 20)
    asking = np.r_[0:20, 40:60]
    votes = voting._agreeing(collected(codes, 4, angles), asking, asking + 20, np.zeros(40, bool), group, 2)
    assert votes.tolist() == [20, 5]


def test_a_stretched_copy_is_found_by_squeezing(originals):
    """Stretched 2.3 times along a diagonal: without squeezing most are missed."""
    axes = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    linear = axes @ np.diag([1 / 2.3, 1]) @ axes.T
    linear /= np.abs(linear).sum(1).max()
    matrix = np.column_stack([linear, 63.5 - linear @ [63.5, 63.5]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    copies = np.stack([cv2.warpAffine(tile, matrix, (SIZE_PX, SIZE_PX), flags=flags) for tile in originals[:6]])
    images = np.concatenate([originals[:6], copies])
    true = {(row, row + 6) for row in range(6)}
    with_it, without = (
        {(p.first, p.second) for p in find_pairs(images, neighbours=5, stretched=on)} for on in (True, False)
    )
    assert with_it == true
    assert len(without & true) < len(true)


def test_mirrored_descriptors_are_those_of_the_mirrored_tile(originals):
    luma = duplicates.luma_of(originals[0])
    places, found = keypoints.detect(luma)
    others, mirrored = keypoints.detect(np.ascontiguousarray(luma[:, ::-1]))
    near = 0
    for place, descriptor in zip(places[:, :2], found[:, keypoints._MIRRORED], strict=True):
        there = np.abs(others[:, :2] - [len(luma) - 1 - place[0], place[1]]).max(1) < 0.6
        if there.any():
            gaps = np.linalg.norm(mirrored[there].astype(float) - descriptor, axis=1)
            near += gaps.min() < 60  # of descriptors about 512 long
    assert near > 0.8 * len(places)


@pytest.mark.parametrize("shade", [244, 0, 128])
def test_blank_tiles_are_never_a_pair_not_even_with_equal_pixels(shade, originals):
    images = originals[:4].copy()
    images[1:3] = shade
    assert find_pairs(images) == []


def test_reasons_and_confidence(originals):
    rng = np.random.default_rng(2)
    stretched = cv2.resize(originals[1][:, 30:100], (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC)
    red = (originals[2] * [1, 0.8, 0.8]).astype(np.uint8)
    copies = np.stack([originals[0], stretched, red, jpeg(originals[3], rng)])
    pairs = {pair.first: pair for pair in find_pairs(np.concatenate([originals[:4], copies]))}
    assert [pairs[row].kind for row in range(4)] == ["exact", "keypoints", "hash", "hash"]
    assert [pairs[row].recoloured for row in range(4)] == [False, False, True, False]
    assert pairs[0].reason == "identical pixels"
    assert "stretched 1.8 times" in pairs[1].reason
    assert "other colours" in pairs[2].reason
    assert "compressed" in pairs[3].reason
    assert all(0.5 <= pair.confidence <= 1 for pair in pairs.values())
    assert duplicates.confidence_of(5, 0.9) < duplicates.confidence_of(20, 0.9) > duplicates.confidence_of(20, 0.5)


def test_bland_tiles_are_no_near_duplicates():
    rng = np.random.default_rng(0)
    noise = (225 + rng.normal(0, 3, (20, SIZE_PX, SIZE_PX, 3))).clip(0, 255).astype(np.uint8)
    assert find_pairs(noise) == []


def test_tissue_of_one_look_is_no_near_duplicate():
    """Textures of one kind, stain and brightness, as the tiles of one slide are."""
    rng = np.random.default_rng(4)
    images = np.zeros((16, SIZE_PX, SIZE_PX, 3), np.uint8)
    for image in images:
        cells = cv2.GaussianBlur(rng.normal(size=(SIZE_PX, SIZE_PX)), (0, 0), 2)
        image[:] = (200 - 60 * (cells > 0.1)[..., None] * [1, 1.5, 0.7]).astype(np.uint8)
    assert find_pairs(images) == []


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_tiles_make_no_pairs(count, originals):
    assert find_pairs(originals[:count]) == []


def test_embeddings_add_pairs_that_are_only_alike(originals):
    embeddings = np.eye(COUNT, 18, dtype=np.float32)
    embeddings[5] = embeddings[4] + 0.1 * embeddings[7]
    (pair,) = find_pairs(originals, embeddings=embeddings, min_cosine=0.9, neighbours=3, stretched=False)
    assert (pair.first, pair.second, pair.kind) == (4, 5, "embedding")
    assert pair.score == pytest.approx(1 / np.sqrt(1.01), abs=1e-4)
    assert 0 < pair.confidence < 0.1
    assert "cosine 1.00" in pair.reason
    assert find_pairs(originals, embeddings=embeddings, min_cosine=0.999, neighbours=3, stretched=False) == []


def test_the_confidence_of_similar_pairs_is_what_the_set_says_of_that_cosine():
    """Above 0.9 half of the pairs were found; a search that misses 1% leaves 0.5 of 50 among the other 49.5."""
    cosine = np.linspace(0, 1, 2000, dtype=np.float32)
    found = (cosine > 0.9) & (np.arange(2000) % 2 == 0)
    sure = duplicates.confidence_by_cosine(cosine[::-1], found[::-1])[::-1]
    assert sure[1900:] == pytest.approx(0.01, abs=0.002)
    assert sure[:1700].max() < 2e-4
    every = duplicates.confidence_by_cosine(cosine, np.ones(2000, bool))
    assert every.max() < 0.6  # all others of this cosine are copies: it may be one that was missed
    assert duplicates.confidence_by_cosine(cosine[:0], found[:0]).shape == (0,)


def test_wrong_shapes_are_refused(originals):
    with pytest.raises(ValueError, match=r"images: expected uint8 \(N, H, W, 3\)"):
        find_pairs(originals.astype(np.float32))
    with pytest.raises(ValueError, match="embeddings: expected"):
        find_pairs(originals, embeddings=np.zeros((3, 2), np.float32))


def test_clusters_are_those_of_a_naive_spread_and_numbered_in_the_order_of_the_tiles():
    pairs = [(int(a), int(b)) for a, b in np.random.default_rng(0).integers(0, 60, (35, 2))]
    expected = list(range(60))
    for _ in range(60):  # the smallest tile of each cluster spreads along the pairs
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    number = {smallest: index for index, smallest in enumerate(sorted(set(expected)))}
    assert clusters_of(60, pairs).tolist() == [number[smallest] for smallest in expected]
    assert clusters_of(3, []).tolist() == [0, 1, 2]


def test_groups_and_clusters_are_joined_both_ways():
    #           slide a   a   b   b   c   d ; tiles 1 and 2 are near-duplicates, 4 and 5 too
    groups = np.array(["a", "a", "b", "b", "c", "d", "e"])
    clusters = np.array([0, 1, 1, 2, 3, 3, 4])
    joined = join_groups(clusters, groups, ids=list("tuvwxyz"))
    assert joined.tolist() == ["a", "a", "a", "a", "c", "c", "e"]
    assert join_groups(clusters, None, ids=list("tuvwxyz")).tolist() == ["t", "u", "u", "w", "x", "x", "z"]


def test_pairs_can_be_kept_in_sets():
    assert len({Pair(0, 1, "exact", 1.0, "as it is"), Pair(0, 1, "exact", 1.0, "as it is")}) == 1
