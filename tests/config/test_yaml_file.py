import pytest

from megatron_llava.config.yaml_file import field_values, read_yaml_mapping


def read(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return field_values(read_yaml_mapping(str(path)), str(path))


@pytest.mark.parametrize(
    "text",
    [
        "lr: 1e-4\nnum-workers: 0\noptimizer: adam\n",
        "optimizer: {lr: 0.0001, optimizer: adam}\ndata:\n  num_workers: 0\n",
        "optimizer: {lr: '0.0001'}\nnum_workers: 0\n",
    ],
)
def test_flat_and_nested_keys(tmp_path, text):
    values = read(tmp_path, text)
    values.pop("optimizer", None)
    assert values == {"lr": 1e-4, "num_workers": 0}


def test_a_group_of_comments_says_nothing(tmp_path):
    assert read(tmp_path, "training:\n  # seed: 2\ndata: {num_workers: 3}\n") == {"num_workers": 3}


def test_a_null_leaves_the_default(tmp_path):
    assert read(tmp_path, "lr: null\npinpoint_order: null\nseed: 1\n") == {"seed": 1}


def test_an_empty_file_sets_nothing(tmp_path):
    assert read(tmp_path, "# nothing\n") == {}


def test_pinpoints_may_be_a_yaml_list(tmp_path):
    values = read(tmp_path, "image_grid_pinpoints: [[336, 672], [672, 336]]\n")
    assert values == {"image_grid_pinpoints": "[[336, 672], [672, 336]]"}


def test_merge_keys_may_be_overridden(tmp_path):
    text = "data: &base {seq_length: 8, num_workers: 1}\n"
    assert read(tmp_path, text) == {"seq_length": 8, "num_workers": 1}
    path = tmp_path / "merge.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    assert read_yaml_mapping(str(path))["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 1\n", ["run.yaml: unknown key learning_rate"]),
        ("train-iter: 1\n", ["unknown key train-iter; did you mean train_iters"]),
        ("training: {sed: 1}\n", ["unknown key sed; did you mean seed?"]),
        ("language: 4\n", ["unknown key language"]),
        ("7: 4\n", ["unknown key 7"]),
        ("training: {lr: 1}\n", ["lr belongs to optimizer, not to training"]),
        ("seed: 1\nseed: 2\n", ["run.yaml:2", "seed is given twice"]),
        ("seed: 1\ntraining: {seed: 2}\n", ["seed is given twice"]),
        ("num-workers: 1\nnum_workers: 2\n", ["num_workers is given twice"]),
        ("seed: x\n", ["seed needs an integer, got 'x'"]),
        ("clip_grad: null\n", ["clip_grad needs a number, got null"]),
        ("bf16: 'yes'\n", ["bf16 needs true or false"]),
        ("device: tpu\n", ["device 'tpu' is not one of auto, cuda, cpu"]),
        ("- seed\n", ["holds a list, not a mapping"]),
        ("seed: [1\n", ["run.yaml:2", "not valid YAML"]),
        ("seed: \x07\n", ["not valid YAML"]),
    ],
)
def test_errors_name_the_file_and_the_key_in_one_line(tmp_path, text, expected):
    with pytest.raises(ValueError) as raised:
        read(tmp_path, text)
    message = str(raised.value)
    assert str(tmp_path / "run.yaml") in message
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match="cannot read .*absent.yaml: No such file"):
        read_yaml_mapping(str(tmp_path / "absent.yaml"))
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"seed: \xff\n")
    with pytest.raises(ValueError, match="cannot read .*bytes.yaml: it is not UTF-8"):
        read_yaml_mapping(str(path))


def test_only_the_asked_groups():
    assert field_values({"hidden_size": 4}, "model.yaml", ("language",)) == {"hidden_size": 4}
    with pytest.raises(ValueError, match="model.yaml: seed belongs to training, not to language"):
        field_values({"seed": 4}, "model.yaml", ("language",))
