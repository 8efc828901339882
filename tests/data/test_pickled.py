"""Pickles read as data: the official form, NumPy's own, and hostile ones."""

import os
import pickle
import pickletools
import struct

import numpy as np
import pytest
from hypothesis import given, strategies as st

from needle.data.pickled import read_pickled_dict
from needle.errors import DataError


def python2_batch(images: np.ndarray, labels: list[int], order: bytes = b"\x89") -> bytes:
    """A batch as the official files hold it: written by Python 2's cPickle, protocol 2."""

    def text(s: bytes) -> bytes:
        return b"U" + bytes([len(s)]) + s

    rows, columns = images.shape
    shape = b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\nq\x08" + text(b"u1") + b"K\x00K\x01\x87q\x09Rq\x0a"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    raw = images.tobytes("F" if order == b"\x88" else "C")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
        + text(b"b")
        + b"\x87Rq\x05(K\x01"
        + shape
        + dtype
        + order
        + b"T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )
    names = b"".join(text(b"%05d.png" % i) for i in range(rows))
    return (
        b"\x80\x02}q\x01("
        + (text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5"))
        + (text(b"labels") + b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e")
        + (text(b"data") + array)
        + (text(b"filenames") + b"](" + names + b"e")
        + b"u."
    )


def some_images(rows=4, columns=300):
    return np.random.default_rng(0).integers(0, 256, (rows, columns), dtype=np.uint8)


@pytest.mark.parametrize("order", [b"\x89", b"\x88"])
def test_official_form(order):
    images = some_images()
    data = python2_batch(images, [3, 1, 4, 1], order)
    batch = read_pickled_dict(data, "data_batch_1")
    assert batch["batch_label"] == "training batch 1 of 5"
    assert batch["labels"] == [3, 1, 4, 1]
    assert batch["filenames"] == ["00000.png", "00001.png", "00002.png", "00003.png"]
    np.testing.assert_array_equal(batch["data"].array, images)
    # The hand-written stream is what it claims to be: the genuine reader agrees.
    genuine = pickle.loads(data, encoding="latin1")
    np.testing.assert_array_equal(genuine["data"], images)
    assert genuine["labels"] == batch["labels"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_saved_again_by_python_3(protocol):
    value = {
        b"data": np.asfortranarray(some_images(3, 7)) if protocol == 2 else some_images(3, 7),
        "labels": [0, 9, 2**40],
        "empty": [[], {}, ()],
        "plain": (None, True, False, -1, b"bytes", "täxt", 256, 65536),
    }
    if protocol == 5:  # arrays come as buffers, which official files never use
        del value[b"data"]
    batch = read_pickled_dict(pickle.dumps(value, protocol=protocol), "file")
    if protocol < 5:
        np.testing.assert_array_equal(batch.pop("data").array, value.pop(b"data"))
    assert batch == value


class Hostile:
    """Asks the reader to call anything."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def flag(path):
    return f"touch {path}"


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path, protocol):
    proof = tmp_path / "ran"
    bomb = pickle.dumps({"data": Hostile(os.system, flag(proof)), "labels": []}, protocol)
    with pytest.raises(DataError, match="refused at byte"):
        read_pickled_dict(bomb, "data_batch_1")
    assert not proof.exists()
    pickle.loads(bomb)  # the genuine reader does run it: the test would notice
    assert proof.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pickle.dumps(Hostile(eval, "1/0"), 2), r"import '(__builtin__|builtins)\.eval'"),
        (lambda: pickle.dumps(Hostile(eval, "1/0"), 4), r"import 'builtins\.eval'"),
        (lambda: pickle.dumps({"x": np.float64(1)}, 4), "numpy.*scalar"),
        (lambda: pickle.dumps({"x": np.zeros(2)}, 4), "an array of 'f8'"),
        (lambda: pickle.dumps({"x": np.array([eval], object)}, 4), "an array of 'O8'"),
        (lambda: pickle.dumps({"x": {1, 2}}, 4), "EMPTY_SET"),
        (lambda: pickle.dumps({"x": 1.5}, 4), "BINFLOAT"),
        (lambda: pickle.dumps({"x": Plain()}, 2), "import"),
        # Names that are allowed, used otherwise than NumPy does.
        (lambda: b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "asks to call 'numpy.ndarray'"),
        (lambda: b"\x80\x02c_codecs\nencode\nU\x01aU\x05rot13\x86R.", "'_codecs.encode'"),
        (lambda: b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.", "an array of 'O'"),
        (lambda: b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nK\x01\x85R.", "_reconstruct"),
        (lambda: b"\x80\x02}K\x01b.", "set the state"),
        (lambda: b"\x80\x02K\x01K\x02\x85R.", "asks to call something"),
        (lambda: b"\x80\x02U\x01aQ.", "BINPERSID"),
        (lambda: b"\x80\x02\x82\x01.", "EXT1"),
    ],
)
def test_anything_but_data_is_refused(make, message):
    with pytest.raises(DataError, match=f"refused at byte .*{message}"):
        read_pickled_dict(make(), "file")


class Plain:
    pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}}.",
        b"\x80\x02(.",
        b"\x80\x02u.",
        b"\x80\x02}K\x01K\x01s.",  # a key that is no string
        b"\x80\x02}(K\x01u.",
        b"\x80\x02h\x07.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02\x86.",
        b"\x80\x02(K\x01\x86.",
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        b"\x80\x02T\xff\xff\xff\xffabc.",
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    ],
)
def test_no_pickle(data):
    with pytest.raises(DataError, match=r"file: not a readable pickle"):
        read_pickled_dict(data, "file")


def test_not_a_dict():
    with pytest.raises(DataError, match="expected a pickled dict, found list"):
        read_pickled_dict(pickle.dumps([1], 2), "file")


def test_array_of_the_wrong_length():
    data = python2_batch(some_images(2, 10), [1, 2])
    wrong = data.replace(b"M\x02\x00M\x0a\x00", b"M\x03\x00M\x0a\x00")
    assert wrong != data
    with pytest.raises(DataError, match="cannot reshape"):
        read_pickled_dict(wrong, "file")


OFFICIAL = python2_batch(some_images(2, 20), [1, 2])
OPCODES = b"".join(o.code.encode("latin-1") for o in pickletools.opcodes)


@given(
    st.one_of(
        st.binary(max_size=80),
        st.lists(st.sampled_from(list(OPCODES)), max_size=30).map(lambda c: b"\x80\x02" + bytes(c)),
        st.integers(0, len(OFFICIAL) - 1).map(lambda end: OFFICIAL[:end]),
        st.builds(
            lambda at, new: OFFICIAL[:at] + new + OFFICIAL[at + len(new) :],
            st.integers(0, len(OFFICIAL)),
            st.binary(min_size=1, max_size=3),
        ),
    )
)
def test_fuzz_only_data_errors_come_out(data):
    value, message = None, "the file"
    try:
        value = read_pickled_dict(data, "the file")
    except DataError as error:
        message = str(error)
    assert "the file" in message
    assert value is None or type(value) is dict
