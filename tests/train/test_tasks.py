"""Tasks by name and of one's own; mistakes in naming them are explained."""

import numpy as np
import pytest

from needle.errors import ArgumentError, DataNotFoundError
from needle.train import Recipe, Task, TaskOptions, load_task

SPIRALS = """
import numpy as np
import needle as ndl
from needle.train import Recipe, Task

LIMIT = 3

def task(options):
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return Task(
        model=ndl.nn.Linear(4, 2),
        train_data=ndl.data.TensorDataset(x[:40], y[:40]),
        test_data=ndl.data.TensorDataset(x[40:], y[40:]),
        loss=ndl.nn.functional.cross_entropy,
        model_name=str(options.model),
        recipe=Recipe(epochs=2, batch_size=8, lr=0.1),
    )

def no_argument():
    return task(type("Options", (), {"model": "none"}))

def two(a, b):
    pass

def wrong():
    return 3

def broken(options):
    return {}["missing"]
"""


@pytest.fixture
def spirals(tmp_path, monkeypatch):
    (tmp_path / "my_spirals.py").write_text(SPIRALS)
    (tmp_path / "needs_more.py").write_text("import a_package_that_does_not_exist\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    yield tmp_path
    __import__("sys").modules.pop("my_spirals", None)


@pytest.mark.parametrize("place", ["my_spirals", "my_spirals.py", "./my_spirals.py"])
def test_a_task_of_ones_own(spirals, place):
    task = load_task(f"{place}:task", TaskOptions(model="tiny"))
    assert isinstance(task, Task)
    assert (task.name, task.model_name) == ("my_spirals", "tiny")
    assert load_task(f"{place}:no_argument").model_name == "none"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digit", r"no task 'digit'. Did you mean digits\?"),
        ("nothing", "digits, mnist, cifar10, text, and MODULE:FUNCTION"),
        (":task", "does not name a task"),
        ("my_spirals:", "does not name a task"),
        ("no_such_module:task", "no module 'no_such_module' in"),
        ("my_spirals.sub:task", "no module 'my_spirals.sub'"),
        ("..:task", "is no module name"),
        ("none.py:task", "no file none.py"),
        ("my_spirals:tsak", r"has no 'tsak'; did you mean task\?"),
        ("my_spirals:something", "its functions: task, no_argument, two, wrong, broken"),
        ("my_spirals:LIMIT", "is a int, not a function"),
        ("my_spirals:two", "needs the arguments a, b"),
        ("my_spirals:wrong", "returned a int; a task function takes"),
    ],
)
def test_a_bad_name_is_explained(spirals, spec, words):
    with pytest.raises(ArgumentError, match=words):
        load_task(spec)


def test_errors_of_the_users_code_pass_through(spirals):
    with pytest.raises(KeyError, match="missing"):
        load_task("my_spirals:broken")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_does_not_exist"):
        load_task("needs_more:task")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"lr": 0.0}, "lr must be greater than 0"),
        ({"lr": float("nan")}, "lr must be greater than 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"optimizer": "magic"}, "no optimizer 'magic'; choose one of adagrad"),
    ],
)
def test_a_senseless_recipe_is_refused(changes, words):
    with pytest.raises(ArgumentError, match=words):
        Recipe(**changes)


def test_digits_has_pictures_and_names():
    task = load_task("digits")
    assert len(task.train_data) + len(task.test_data) == 1797
    assert task.class_names == tuple("0123456789")
    picture = task.picture(5)
    assert (picture.dtype, picture.shape) == (np.uint8, (8, 8, 1))
    stored = task.test_data.images[5, 0]
    np.testing.assert_array_equal(picture[:, :, 0], np.floor(stored * (255 / 16)))
    assert stored.max() == 16


def test_an_unknown_model_is_refused():
    with pytest.raises(ArgumentError, match="task digits has no model 'bert'; choose one of mlp"):
        load_task("digits", TaskOptions(model="bert"))


def test_mnist_with_the_test_files_only_is_split(shared_data):
    task = load_task("mnist", TaskOptions(data=shared_data))
    assert (len(task.train_data), len(task.test_data)) == (8000, 2000)
    assert "8,000" in task.notes[0]
    assert "2,000" in task.notes[0]
    indices = np.concatenate([task.train_data.indices, task.test_data.indices])
    np.testing.assert_array_equal(np.sort(indices), np.arange(10_000))
    image, label = task.test_data[7]
    assert label == task.test_data.dataset.labels[35]
    np.testing.assert_array_equal(task.picture(7)[:, :, 0], task.test_data.dataset.images[35, 0])
    assert image.dtype == np.float32


def test_missing_data_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=str(tmp_path)):
        load_task("mnist", TaskOptions(data=tmp_path))
    with pytest.raises(DataNotFoundError, match=str(tmp_path)):
        load_task("cifar10", TaskOptions(data=tmp_path))
    with pytest.raises(DataNotFoundError, match=str(tmp_path)):
        load_task("text", TaskOptions(data=tmp_path))
    with pytest.raises(ArgumentError, match="--data"):
        load_task("text")


def test_a_folder_with_two_texts_is_ambiguous(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(ArgumentError, match=r"a\.txt, b\.txt"):
        load_task("text", TaskOptions(data=tmp_path))
